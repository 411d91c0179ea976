"""A session told anew in the digests of another store.

An encrypted store names segments and token ids by keyed digests, and what names them goes all through a log: segments
name the one before, contexts the tokens up to their end. A store with another key of digests, or with none, takes the
same session in with names of its own:

```
segment    the same sections and settings, but the digest of the segment before
context    prefix, after, parent and the digests that are told of other entries; `salt` where the store needs one;
           `was`, the digest of the entry where it comes from; no signature, for that was of the digests
```
All of it follows from the log and the key of digests, so a session that has grown goes on where it was taken over.
What is not there, as it was collected or left its token ids alone, is named by the digest of its old name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvcompress.errors import FormatError
from kvcompress.format.container import to_bytes
from kvcompress.format.session import SEGMENT
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.bundle import Head, Log, LogHead, Row, Source
from kvcompress.store.log import Link
from kvcompress.store.objects import content_digest
from kvcompress.store.pieces import DIGEST, head_of, pieces_of, read_logs
from kvcompress.store.segment import PREFIX_BYTES, Part, read_part
from kvcompress.store.signing import SIGNATURE

SALT_BYTES = 16
_TOLD = ("of", "from")
"""What contexts call digests of other entries."""


def translated(source: Source, head: Head, digest_key: bytes) -> tuple[Translated, Head]:
    """Return a session as a store with another key of digests tells it, and its head.

    Args:
        source: Where it comes from.
        head: Its head there.
        digest_key: Of the store; empty where it is plain.

    Raises:
        FormatError: Something was changed, or contradicts itself.
    """
    logs = read_logs(source, head)
    made = Translated(source, logs, digest_key)
    return made, replace(head, logs=tuple(made.log(log) for log in logs))


class Translated:
    """See `Source`.

    Args:
        source: What is translated.
        logs: Its logs.
        digest_key: Of the store.
    """

    def __init__(self, source: Source, logs: Sequence[Log], digest_key: bytes) -> None:
        self.source, self.digest_key = source, digest_key
        self._held = {row.segment: row.held for log in logs for row in log.rows if row.held}
        self._entries: dict[str, str] = {}
        self._segments: dict[str, str] = {"": ""}
        self._pieces: dict[str, bytes] = {}
        self._files: dict[str, str] = {}
        """Segments there, by the digests of their files here."""
        self._bytes: dict[str, int] = {}
        self._stand_ins: dict[str, str] = {}
        """Files here of segments of which the token ids alone are there."""
        self._ids: dict[str, tuple[Any, Any]] = {}
        """Running digests of the ids up to the end of a segment, there and here."""
        nothing = (hashlib.blake2b(digest_size=PREFIX_BYTES, key=key) for key in (source.digest_key, digest_key))
        self._ids[""] = next(nothing), next(nothing)

    # -- see `Source`

    def piece(self, digest: str) -> bytes:
        """See `Source`."""
        return self._pieces[digest]

    def segment(self, digest: str) -> bytes:
        """See `Source`."""
        return self._told(self._part(self._files[digest]))

    # -- logs

    def log(self, log: Log) -> LogHead:
        """Translate a log, after those that it branched from."""
        rows, link = list[Row](), Link()
        for row in log.rows:
            segment = self._named(row.segment)
            held = self._stand_ins.get(row.segment, segment) if row.held else ""
            says = self._context(row)
            context = canonical_json(says)
            link = link.then(bytes.fromhex(segment), context)
            rows.append(Row(segment, context, says, link, held))
            self._entries[row.link.digest.hex()] = link.digest.hex()
        made = replace(log, rows=tuple(rows))
        pieces = list(pieces_of(made, key=self.digest_key))
        self._pieces |= {digest: data for digest, _, data in pieces}
        return head_of(made, [(digest, last) for digest, last, _ in pieces])

    def _context(self, row: Row) -> dict[str, Any]:
        old = row.link.digest
        says = {name: value for name, value in row.says.items() if name != SIGNATURE}
        if isinstance(says["parent"], str):
            says["parent"] = self._entries[says["parent"]]
        for name in _TOLD:
            if isinstance(says.get(name), str):
                says[name] = self._entries.get(says[name], says[name])
        if row.is_turn:
            says["prefix"] = self._prefix(row)
            if DIGEST.fullmatch(str(says.get("after"))):
                says["after"] = self._named(says["after"])
            if row.segment in self._bytes and "bytes" in says:
                says["bytes"] = self._bytes[row.segment]
        if self.digest_key and "salt" not in says:
            says["salt"] = hashlib.blake2b(old, digest_size=SALT_BYTES, key=self.digest_key).hexdigest()
        says.setdefault("was", old.hex())
        return says

    def _prefix(self, row: Row) -> str:
        ids = self._ids.get(row.segment)
        if ids is None:  # nobody can tell the tokens
            return content_digest(bytes.fromhex(row.says["prefix"]), self.digest_key)[: 2 * PREFIX_BYTES]
        there, here = ids
        if there.hexdigest() != row.says["prefix"]:
            raise FormatError(f"the segment {row.segment[:16]} holds other tokens than its entry states")
        return str(here.hexdigest())

    # -- segments

    def _named(self, segment: str) -> str:
        """Return what a segment is called here; those before it are named first."""
        way = [segment]
        while way[-1] not in self._segments:
            if way[-1] not in self._held:
                self._segments[way[-1]] = self._unknown(way[-1])
                break
            way.append(self._part(way[-1]).parent)
            if len(way) > len(self._held) + 1:
                raise FormatError(f"the segment {segment[:16]} goes on from itself")
        for one in reversed(way):
            if one not in self._segments:
                self._translate(one)
        return self._segments[segment]

    def _unknown(self, digest: str) -> str:
        """Return what something is called whose content is not there."""
        return content_digest(bytes.fromhex(digest), self.digest_key)

    def _translate(self, segment: str) -> None:
        part = self._part(segment)
        if part.parent not in self._ids:
            raise FormatError(f"the segment {segment[:16]} goes on from one that is not there")
        data = self._told(part)
        name = content_digest(data, self.digest_key)
        self._files[name] = segment
        if self._held[segment] != segment:
            self._stand_ins[segment] = name
        else:
            self._bytes[segment] = len(data)
        self._segments[segment] = self._unknown(segment) if segment in self._stand_ins else name
        ids = part.token_ids.numpy().astype("<i8").tobytes()
        there, here = (hashed.copy() for hashed in self._ids[part.parent])
        there.update(ids)
        here.update(ids)
        self._ids[segment] = there, here

    def _part(self, segment: str) -> Part:
        held = self._held[segment]
        data = self.source.segment(held)
        if content_digest(data, self.source.digest_key) != held:
            raise FormatError(f"the segment {held[:16]} was changed on its way", "Export the session again")
        return read_part(data)

    def _told(self, part: Part) -> bytes:
        """Return a segment as it is here."""
        says: Mapping[str, Any] = part.encoded.settings[SEGMENT]
        settings = {**part.encoded.settings, SEGMENT: {**says, "parent": self._segments[part.parent]}}
        return to_bytes(replace(part.encoded, settings=settings))
