"""What is trusted: whose signatures, which codecs, which least fidelity. What is not is refused before it is decoded.

```toml
# trust.toml; what is left out is not asked for
signers = ["<public key, 64 hexadecimal digits>"]
codecs = ["lossless", "<16 or more digits of a learned codec's fingerprint>"]
max_kl_nats = 0.01
max_context_lost = 0.02
min_top1_agreement = 0.97
```
The same fields may be given as JSON. A figure asks for a certificate that states at least as much; where the identical
bits are stored, or token ids that a model computes again, every figure is met.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvcompress.api.certificates import EXACT, RECOMPUTED
from kvcompress.errors import FormatError, IntegrityError, TrustError
from kvcompress.format.atomic import PathLike, open_regular
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.strict_json import parse_json
from kvcompress.store.cover import raw_rows
from kvcompress.store.log import TURNS, Stored, entry_of
from kvcompress.store.path import path_ids
from kvcompress.store.provenance import previous_link
from kvcompress.store.segment import TOKENS_ONLY, Part, prefix_digests
from kvcompress.store.signing import ENTRY, SIGNATURE, entry_message, signed_by

if TYPE_CHECKING:
    from kvcompress.store.log import Entry
    from kvcompress.store.reading import SessionLog

MOST_POLICY_BYTES = 1 << 20
FIELDS = ("signers", "codecs", "max_kl_nats", "max_context_lost", "min_top1_agreement")
LEAST_CODEC_DIGITS = 16
_KEY, _NAME = re.compile(r"[0-9a-f]{64}"), re.compile(r"[a-z][a-z0-9_]{0,40}|[0-9a-f]{16,64}")
_AS_IT_LIES = (
    "SELECT entries.*, (SELECT digest FROM entries AS other WHERE other.id = entries.parent) AS parent_digest "
    "FROM entries WHERE id = ?"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is trusted; None asks for nothing.

    Attributes:
        signers: Public keys, one of which has signed every entry that a state comes from.
        codecs: Kinds of codecs without weights, and first digits of the fingerprints of others.
        max_kl_nats: Highest mean KL that a certificate may state as its bound.
        max_context_lost: Likewise of what the context is worth.
        min_top1_agreement: Lowest agreement of the most likely token.
    """

    signers: frozenset[str] | None = None
    codecs: frozenset[str] | None = None
    max_kl_nats: float | None = None
    max_context_lost: float | None = None
    min_top1_agreement: float | None = None

    @classmethod
    def from_file(cls, path: PathLike) -> Policy:
        """Read a policy: JSON where the name ends so, else TOML.

        Raises:
            InputError: There is no such file.
            FormatError: It is neither, has a field that is not known, or one of another type: a misspelt one would
                ask for nothing.
        """
        with open_regular(path) as (file, size):
            if size > MOST_POLICY_BYTES:
                raise FormatError(f"a trust policy of {size} bytes is larger than {MOST_POLICY_BYTES}", path=path)
            data = file.read(MOST_POLICY_BYTES)
        try:
            json_file = Path(path).suffix == ".json"
            held = parse_json(data, "the trust policy") if json_file else tomllib.loads(data.decode())
            return cls.from_json(held)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"the trust policy is not valid TOML: {error}", path=path) from error
        except FormatError as error:
            error.path = path
            raise

    @classmethod
    def from_json(cls, data: object) -> Policy:
        """Read the fields of a policy; raises `FormatError` as `from_file` does."""
        given = JsonFields(data, "the trust policy:", only=FIELDS)
        figures = {name: given.optional(given.number, name, least=0) for name in FIELDS[2:]}
        signers, codecs = (given.optional(given.value, name) for name in FIELDS[:2])
        return cls(
            signers=_texts(given, "signers", signers, _KEY), codecs=_texts(given, "codecs", codecs, _NAME), **figures
        )

    @property
    def asks_for_figures(self) -> bool:
        """Whether a certificate is needed."""
        return any(one is not None for one in (self.max_kl_nats, self.max_context_lost, self.min_top1_agreement))

    def require(self, session: SessionLog, entry: Entry) -> list[Part]:
        """Return the segments on the way to an entry, the first one first, unless one of them is not trusted.

        Args:
            session: The session.
            entry: The state that is wanted.

        Raises:
            TrustError: One is not; nothing was decoded.
            IntegrityError: One was changed.
        """
        way = self._way(session, entry)
        turns = [one for one in way if one.kind in TURNS]
        for turn in turns:
            self._require_stated(turn)
        parts = [session.store.part(turn.segment) for turn in turns]
        ids = torch.cat([part.token_ids for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
        prefixes = prefix_digests(ids, {turn.end for turn in turns}, session.store.digest_key)
        after = ""
        for turn, part in zip(turns, parts, strict=True):
            told = (turn.context.get("prefix"), turn.context.get("after"))
            if told != (prefixes[turn.end].hex(), after):
                what = f"entry {turn.number} holds other tokens than it says, or follows others"
                raise IntegrityError(what, "See `kvcompress store verify`")
            self._require_codec(turn, part)
            after = turn.segment
        return parts

    def _way(self, session: SessionLog, entry: Entry) -> list[Entry]:
        """Return all entries on the way to one, the first one first, each as it was anchored and signed as asked."""
        store, found = session.store, []
        with store.database.read() as tables:
            for number in reversed(path_ids(tables, entry.id)):
                [row] = raw_rows(tables, _AS_IT_LIES, (number,))
                held = Stored.of(row, store.cover)
                if not held.agrees or held.says.get("number") != held.number:
                    raise IntegrityError(f"entry {held.number} was changed", "See `kvcompress store verify`")
                found.append(entry_of(tables.execute("SELECT * FROM entries WHERE id = ?", (number,)).fetchone()))
        for one in found if self.signers is not None else ():
            self._require_signed(session, one)
        return found

    def _require_signed(self, session: SessionLog, entry: Entry) -> None:
        assert self.signers is not None
        signature = entry.context.get(SIGNATURE)
        if signature is None:
            raise TrustError(f"entry {entry.number} is not signed", "The trust policy asks for a signature")
        before, segment = previous_link(session.store, entry).digest, bytes.fromhex(entry.segment)
        signer = signed_by(signature, ENTRY, entry_message(before, segment, entry.context))
        if signer is None:
            raise TrustError(f"the signature of entry {entry.number} does not hold", "It was changed; do not use it")
        if signer not in self.signers:
            what = f"entry {entry.number} is signed by {signer[:16]}, whom the trust policy does not name"
            raise TrustError(what, "Add that key to the policy if you trust it")

    def _require_stated(self, turn: Entry) -> None:
        """Refuse an entry whose own words are not enough, before its segment is read."""
        if not self.asks_for_figures:
            return
        certificate = turn.context.get("certificate")
        if not isinstance(certificate, Mapping):
            what = f"the fidelity of entry {turn.number} was never measured"
            raise TrustError(what, "The trust policy asks for a certificate")
        if certificate.get("basis") in (EXACT, RECOMPUTED):
            return
        for name, sign in (("max_kl_nats", 1), ("max_context_lost", 1), ("min_top1_agreement", -1)):
            wanted, stated = getattr(self, name), certificate.get(name)
            if wanted is None:
                continue
            if not isinstance(stated, int | float) or isinstance(stated, bool) or not sign * stated <= sign * wanted:
                told = f"{stated:g}" if isinstance(stated, float) else "nothing"
                what = f"entry {turn.number} is certified with {name} of {told}, the trust policy asks for {wanted:g}"
                raise TrustError(what, "Store it at a finer quality, or change the policy")

    def _require_codec(self, turn: Entry, part: Part) -> None:
        """Refuse a segment that another codec made than its entry says, or one that is not trusted."""
        kind, fingerprint = part.encoded.codec, part.encoded.codec_fingerprint
        stated = (turn.context.get("codec"), turn.context.get("codec_fingerprint", ""))
        if kind != TOKENS_ONLY and stated != (kind, fingerprint):
            raise IntegrityError(f"entry {turn.number} names another codec than its segment", "Do not use it")
        if self.codecs is None:
            return
        named = fingerprint and any(
            fingerprint.startswith(one) for one in self.codecs if len(one) >= LEAST_CODEC_DIGITS
        )
        if not named and (fingerprint or kind not in self.codecs):
            what = f"entry {turn.number} was coded by {kind} {fingerprint[:16]}".rstrip()
            raise TrustError(f"{what}, which the trust policy does not name", "Add it to `codecs` if you trust it")


def _texts(given: JsonFields, name: str, value: Any, form: re.Pattern[str]) -> frozenset[str] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise given.bad(name, "a list of texts")
    found = [one.lower() if isinstance(one, str) else "" for one in value]
    if not all(form.fullmatch(one) for one in found):
        raise given.bad(name, "a list of keys" if form is _KEY else "a list of kinds and fingerprints")
    return frozenset(found)
