"""Where an entry of a log comes from: who made it, with what model and codec, from what, when, and how true it is.

All of it stands in the entry's context, which the chain of anchors covers and a signature can sign. One JSON record
holds what a third party needs to check both:

```
format    "kvcompress-provenance-1"
...       what `Provenance` says
context   the entry's context as it was anchored
previous  digest of the entry before
```
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcompress.api.certificates import certificate_of
from kvcompress.errors import FormatError, InputError, IntegrityError
from kvcompress.format.container import header_of
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.strict_json import canonical_json, read_json
from kvcompress.snapshot import ModelFingerprint
from kvcompress.store.columns import session_row
from kvcompress.store.database import entry_id
from kvcompress.store.log import Entry, Link
from kvcompress.store.signing import ENTRY, SIGNATURE, entry_message, signed_by

if TYPE_CHECKING:
    from kvcompress.format.atomic import PathLike
    from kvcompress.store.reading import SessionLog
    from kvcompress.store.store import Store

FORMAT = "kvcompress-provenance-1"
_SEE = "See `kvcompress store verify`"

_NAMED = {"parent": "after", "codec": "codec", "codec_fingerprint": "codec_fingerprint"}
"""Fields of a record, and what a context calls them."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an entry comes from.

    Attributes:
        session: Name of its session, a label that nothing vouches for.
        number: Its place in the log.
        kind: As of `Entry`.
        producer: The program that wrote it.
        time: When, seconds since 1970.
        tokens: [start, end) of the session that it adds.
        segment: Digest of what it adds, "" for nothing.
        parent: Digest of the segment before, "" for none.
        model: Fingerprints of the model by part; empty where the entry adds nothing.
        codec: Kind of the codec, "" where the entry adds nothing.
        codec_fingerprint: Of a learned codec, "" for others.
        certificate: Measured fidelity: `basis`, and figures in nats and shares; None where nothing was measured.
        previous: Digest of the entry before.
        context: What was anchored.
        digest: Of the entry.
        signer: Public key of its signature, None where it has none; a signature that does not hold raises.
    """

    session: str
    number: int
    kind: str
    producer: str
    time: float
    tokens: tuple[int, int]
    segment: str
    parent: str
    model: Mapping[str, Any]
    codec: str
    codec_fingerprint: str
    certificate: Mapping[str, Any] | None
    previous: str
    context: Mapping[str, Any]
    digest: str
    signer: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the record, JSON-able."""
        return {"format": FORMAT, **asdict(self), "tokens": list(self.tokens)}


def facts_of(data: bytes, store: Store) -> dict[str, Any]:
    """Return what the context of an entry says of its segment.

    Args:
        data: The segment.
        store: Knows what the codec promises.
    """
    header = header_of(io.BytesIO(data), len(data))
    fingerprint = header.codec_fingerprint
    facts: dict[str, Any] = {"codec": header.codec} | ({"codec_fingerprint": fingerprint} if fingerprint else {})
    certificate = certificate_of(header, store.codecs.promises_of(fingerprint))
    return facts | ({} if certificate is None else {"certificate": certificate})


def provenance(session: SessionLog, at: int | str | None = None) -> Provenance:
    """Return where an entry comes from.

    Args:
        session: Its session.
        at: Name or number; None for the newest.

    Raises:
        InputError: There is no such entry.
        IntegrityError: Its signature does not hold, or it does not continue the chain.
    """
    entry = session.head if at is None else session.entry(at)
    if entry is None:
        raise InputError(f"session {session.name!r} is empty", "Append to it first")
    before, context = previous_link(session.store, entry), entry.context
    if before.then(bytes.fromhex(entry.segment), canonical_json(context)).digest.hex() != entry.digest:
        raise IntegrityError(f"entry {entry.number} was changed: it does not continue the chain", _SEE)
    made = Provenance(
        session=session.name,
        number=entry.number,
        kind=entry.kind,
        producer=str(context.get("producer", "")),
        time=_time(entry),
        tokens=(entry.start, entry.end),
        segment=entry.segment,
        parent=str(context.get("after", "")),
        model=_model(session, context),
        codec=str(context.get("codec", "")),
        codec_fingerprint=str(context.get("codec_fingerprint", "")),
        certificate=context.get("certificate"),
        previous=before.digest.hex(),
        context=context,
        digest=entry.digest,
        signer=None,
    )
    return replace(made, signer=_signer(made))


def _time(entry: Entry) -> float:
    """Return when an entry was written, as it says."""
    time = entry.context.get("time", 0.0)
    if type(time) not in (int, float):
        raise IntegrityError(f"entry {entry.number} does not say when it was written", _SEE)
    return float(time)


def previous_link(store: Store, entry: Entry) -> Link:
    """Return where the chain stands before an entry."""
    if not entry.number:
        return Link()
    with store.database.read() as tables:
        asked = "SELECT anchor, digest FROM entries WHERE id = ?"
        row = tables.execute(asked, (entry_id(entry.session, entry.number - 1),)).fetchone()
    if row is None:
        raise IntegrityError(f"the entry before entry {entry.number} is missing", _SEE)
    return Link(bytes(row["anchor"]), bytes(row["digest"]))


def read_record(path: PathLike) -> Provenance:
    """Read a record from a file; see `check_record`."""
    return check_record(read_json(path, "a record of provenance"))


def check_record(record: object) -> Provenance:
    """Read a record, and check that its parts agree with its context, and that with its digest and signature.

    Raises:
        FormatError: It is none.
        IntegrityError: It was changed.
    """
    names = {"format", *Provenance.__dataclass_fields__}
    given = JsonFields(record, "the record:", only=names)
    if given.text("format") != FORMAT:
        raise FormatError("the record is of another format", "Upgrade kvcompress")
    values = {name: given.value(name) for name in names - {"format"}}
    context = values["context"]
    try:
        found = Provenance(**values | {"tokens": tuple(values["tokens"])})
        told = (found.kind, found.number, list(found.tokens), found.producer, found.time, found.certificate)
        said = [context.get(name) for name in ("kind", "number", "tokens", "producer", "time", "certificate")]
        text, segment = canonical_json(context), bytes.fromhex(found.segment)
        digest = Link(digest=bytes.fromhex(found.previous)).then(segment, text).digest.hex()
        model = model_digest(ModelFingerprint(**found.model)) if found.model != {} else ""
    except (TypeError, ValueError, AttributeError, InputError) as error:
        raise FormatError("the record is damaged", "Export it again") from error
    named = all(getattr(found, name) == context.get(said, "") for name, said in _NAMED.items())
    if (
        digest != found.digest
        or list(told) != said
        or not named
        or model != context.get("model", "")
        or _signer(found) != found.signer
    ):
        raise IntegrityError("the record was changed: it contradicts its digest", "Export it again")
    return found


def _signer(record: Provenance) -> str | None:
    """Return whose signature an entry bears, None for none; raises `IntegrityError` where it does not hold."""
    signature = record.context.get(SIGNATURE)
    if signature is None:
        return None
    message = entry_message(bytes.fromhex(record.previous), bytes.fromhex(record.segment), record.context)
    signer = signed_by(signature, ENTRY, message)
    if signer is None:
        raise IntegrityError(f"the signature of entry {record.number} does not hold", _SEE)
    return signer


def _model(session: SessionLog, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprints of the model that an entry's tokens are of, as far as the entry vouches for them."""
    if "model" not in context:
        return {}
    with session.store.database.read() as tables:
        row = session_row(tables, session.id)
    fingerprint = session.store.origin(row["origin"] or "").fingerprint
    if model_digest(fingerprint) != context["model"]:
        raise IntegrityError(
            "the session's model is not the one that its entries name", "Restore the store from a copy"
        )
    return asdict(fingerprint)


def model_digest(fingerprint: ModelFingerprint) -> str:
    """Return the BLAKE2b-256 of a model's fingerprint as canonical JSON: 64 digits instead of 256 in every entry."""
    return hashlib.blake2b(canonical_json(asdict(fingerprint)), digest_size=32).hexdigest()
