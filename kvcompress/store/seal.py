"""Seals: what a log was at a moment, in a small file that is kept elsewhere, signed where a key is at hand.

A log's own chain finds what was changed by accident, or by somebody who cannot compute a hash. Against others a seal
helps, if they cannot reach it or it is signed. A log may grow after it was sealed; what was sealed may not change.

```
log      for each entry |segment| |context|, each part after its length, 8 bytes, little-endian
digest   of the chain after the last entry, BLAKE2b-256; anchor: its 64-bit companion
fnv1a64  FNV-1a of the bytes [start, end) of the log: of all, or of the last 256 KiB
codec    BLAKE2b-256 of the kinds and fingerprints of all codecs, canonical JSON, sorted, each once
```
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvcompress.errors import FormatError, InputError
from kvcompress.format.atomic import PathLike, atomic_write
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.strict_json import canonical_json, parse_json, read_json
from kvcompress.store.log import EDIT, TRUNCATION, Link, Stored, Verdict, verify_chain
from kvcompress.store.signing import SEAL, SIGNATURE, signed_by

if TYPE_CHECKING:
    from kvcompress.store.reading import SessionLog
    from kvcompress.store.signing import Signer

FORMAT = "kvcompress-seal-1"
MOST_SEAL_BYTES = 64 << 10
MOST_FNV_BYTES = 256 << 10
_OFFSET, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1

SIGNER, CODEC = "signature", "codec"
"""Kinds of verdicts beside those of a chain: the seal's signature, and its digest of the codecs."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What a log was.

    Attributes:
        count: Entries that are sealed, from the first one on.
        anchor: Anchor of the last of them, 16 hexadecimal digits.
        digest: Digest of the last of them, 64 hexadecimal digits.
        log_bytes: [start, end) of the log that `fnv1a64` is over.
        fnv1a64: 16 hexadecimal digits.
        codec: Digest of the codecs, 64 hexadecimal digits.
        created: Seconds since 1970.
        signature: An object of `key` and `value`, None where it is not signed.
    """

    count: int
    anchor: str
    digest: str
    log_bytes: tuple[int, int]
    fnv1a64: str
    codec: str
    created: float
    signature: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `seal.json` holds."""
        found = {"format": FORMAT, **asdict(self), "log_bytes": list(self.log_bytes)}
        if self.signature is None:
            del found[SIGNATURE]
        return found

    @classmethod
    def from_json(cls, data: object) -> Seal:
        """Read a seal; raises `FormatError` where it is none."""
        given = JsonFields(data, "the seal:", only=("format", *cls.__dataclass_fields__))
        if given.text("format") != FORMAT:
            raise FormatError("the seal is of another format", "Upgrade kvcompress")
        start, end = given.numbers("log_bytes", 2)
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= start + MOST_FNV_BYTES:
            raise given.bad("log_bytes", f"a range of at most {MOST_FNV_BYTES} bytes")
        signature = given.optional(given.value, SIGNATURE)
        if signature is not None:
            parts = JsonFields(signature, "the seal's signature:", only=("key", "value"))
            signature = {name: _digits(parts, name, count) for name, count in (("key", 64), ("value", 128))}
        return cls(
            count=given.integer("count"),
            anchor=_digits(given, "anchor", 16),
            digest=_digits(given, "digest", 64),
            log_bytes=(start, end),
            fnv1a64=_digits(given, "fnv1a64", 16),
            codec=_digits(given, "codec", 64),
            created=given.number("created"),
            signature=signature,
        )

    @classmethod
    def load(cls, path: PathLike) -> Seal:
        """Read `seal.json`; raises `InputError` and `FormatError`."""
        return cls.from_json(read_json(path, "the seal", MOST_SEAL_BYTES))

    def save(self, path: PathLike, *, force: bool = False) -> None:
        """Write `seal.json`; raises `InputError` where the file exists and `force` is not given."""
        atomic_write(path, [canonical_json(self.to_json()) + b"\n"], force=force)

    def message(self) -> bytes:
        """Return what a signature of it signs: all that it says beside."""
        return canonical_json({name: value for name, value in self.to_json().items() if name != SIGNATURE})

    @property
    def signer(self) -> str | None:
        """Public key that it is signed by; None where it is not, or where the signature does not hold."""
        return signed_by(self.signature, SEAL, self.message())


def seal(session: SessionLog, signer: Signer | None = None) -> Seal:
    """Return the seal of a session's log as it is now; the chain is checked first.

    Args:
        session: The session.
        signer: Signs it; None takes the store's, and where that has none leaves it unsigned.

    Raises:
        InputError: The log is empty, or not in order: nobody is to seal a damaged one.
    """
    held, count, last = session.stored_rows()
    verdict = verify_chain(held, count, last)
    if not verdict.ok:
        raise InputError(
            f"the log of {session.name!r} is not in order: {verdict.what}", "See `kvcompress store verify`"
        )
    if not held:
        raise InputError(f"session {session.name!r} is empty", "Append to it first")
    total = sum(map(len, _log(held)))
    span = (max(0, total - MOST_FNV_BYTES), total)
    made = Seal(
        count=count,
        anchor=last.anchor.hex(),
        digest=last.digest.hex(),
        log_bytes=span,
        fnv1a64=fnv1a64(_cut(held, span)),
        codec=codec_digest(held),
        created=round(time.time(), 3),
    )
    signer = signer or session.store.signer
    if signer is None:
        return made
    return Seal(**asdict(made) | {"log_bytes": span, SIGNATURE: signer.sign(SEAL, made.message())})


def verify_seal(session: SessionLog, sealed: Seal, signers: Collection[str] | None = None) -> Verdict:
    """Check a log against its seal; what was added since is checked by its chain alone.

    Args:
        session: The session.
        sealed: Its seal.
        signers: Public keys, one of which must have signed it; None takes an unsigned seal too, and a signed one only
            where the signature holds.

    Returns:
        As `SessionLog.verify`; kinds are also "signature" and "codec".
    """
    if sealed.signature is not None or signers is not None:
        signer = sealed.signer
        if signer is None:
            told = "is not signed" if sealed.signature is None else "bears a signature that does not hold"
            return Verdict(0, SIGNER, 0, f"the seal {told}: it may be anybody's")
        if signers is not None and signer not in {one.lower() for one in signers}:
            return Verdict(0, SIGNER, 0, f"the seal is signed by {signer[:16]}, who is none of those asked for")
    held, count, last = session.stored_rows()
    verdict = verify_chain(held, count, last)
    if verdict.entries < sealed.count and not verdict.ok:
        return verdict
    if count < sealed.count:
        what = f"entries {count} to {sealed.count - 1} are missing: {sealed.count} were sealed, the log was cut off"
        return Verdict(count, TRUNCATION, count, what, last)
    return _compared(held[: sealed.count], sealed) or verdict


def _compared(held: list[Stored], sealed: Seal) -> Verdict | None:
    """Compare entries, which continue the chain, with their seal; return what differs."""
    at = max(sealed.count - 1, 0)
    link = held[-1].link if held else Link()
    if (link.anchor.hex(), link.digest.hex()) != (sealed.anchor, sealed.digest):
        what = f"the log was rewritten: the chain of its first {sealed.count} entries ends otherwise than was sealed"
        return Verdict(0, EDIT, at, what)
    if sealed.log_bytes[1] != sum(map(len, _log(held))) or fnv1a64(_cut(held, sealed.log_bytes)) != sealed.fnv1a64:
        return Verdict(0, EDIT, at, "the seal was changed: its FNV-1a is of other bytes than its digest")
    if codec_digest(held) != sealed.codec:
        return Verdict(0, CODEC, at, "the seal was changed: it is of other codecs than its digest")
    return None


def codec_digest(held: Iterable[Stored]) -> str:
    """Return the BLAKE2b-256 of the codecs of a log, each kind and fingerprint once, in order."""
    codecs = {
        (str(row.says["codec"]), str(row.says.get("codec_fingerprint", ""))) for row in held if "codec" in row.says
    }
    return hashlib.blake2b(canonical_json([list(one) for one in sorted(codecs)]), digest_size=32).hexdigest()


def fnv1a64(data: bytes) -> str:
    """Return the FNV-1a hash of 64 bits, 16 hexadecimal digits.

    Landon Curt Noll, Phong Vo, Glenn Fowler, "The FNV Non-Cryptographic Hash Algorithm": quick to write in any
    language, and of no use against an adversary.
    """
    value = _OFFSET
    for byte in data:
        value = (value ^ byte) * _PRIME & _MASK
    return f"{value:016x}"


def _log(held: Iterable[Stored]) -> Iterable[bytes]:
    for row in held:
        for part in (row.segment, row.context):
            yield len(part).to_bytes(8, "little") + part


def _cut(held: Iterable[Stored], span: tuple[int, int]) -> bytes:
    """Return the bytes [start, end) of a log."""
    (start, end), at, found = span, 0, []
    for piece in _log(held):
        found.append(piece[max(0, start - at) : max(0, end - at)])
        at += len(piece)
    return b"".join(found)


def _digits(given: JsonFields, name: str, count: int) -> str:
    value = given.text(name)
    if len(value) != count or set(value) - set("0123456789abcdef"):
        raise given.bad(name, f"{count} hexadecimal digits")
    return value


def parse_seal(data: bytes) -> Seal:
    """Read the bytes of `seal.json`; raises `FormatError` where they are none."""
    if len(data) > MOST_SEAL_BYTES:
        raise FormatError(f"a seal of {len(data)} bytes is larger than {MOST_SEAL_BYTES}")
    return Seal.from_json(parse_json(data, "the seal"))
