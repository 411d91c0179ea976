"""Entries of a session's log, their chain of anchors, and what a check of the chain tells.

```
context   canonical JSON: number, kind, parent, tokens, time, and what the kind says beside
          parent: a number of the same log, or the digest of an entry of another log, from which a branch goes on
anchor    BLAKE2b-64  of  |previous anchor| |segment| |context|       each part after its length, 8 bytes, little-endian
digest    BLAKE2b-256 of  |previous digest| |segment| |context|       the same with all 32 bytes
```
The chain follows the numbers, from the first entry on; before it stand zeros. An anchor of 64 bits finds accidents and
is short enough to read aloud; who may meet an adversary looks at the digest, and at a seal.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvcompress.format.strict_json import canonical_json
from kvcompress.store.cover import PLAIN, Cover
from kvcompress.store.database import SESSION_SPAN

ANCHOR_BYTES, DIGEST_BYTES = 8, 32
APPEND, TOKENS, CHECKPOINT, REWIND, POP, BRANCH, FORGET = (
    "append",
    "tokens",
    "checkpoint",
    "rewind",
    "pop",
    "branch",
    "forget",
)
TURNS = (APPEND, TOKENS)
"""Kinds of entries that add tokens."""

EDIT, REORDER, REMOVAL, TRUNCATION, SEGMENT = "edit", "reorder", "removal", "truncation", "segment"


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands.

    Attributes:
        anchor: The last entry's anchor, 8 bytes.
        digest: The last entry's digest, 32 bytes.
    """

    anchor: bytes = bytes(ANCHOR_BYTES)
    digest: bytes = bytes(DIGEST_BYTES)

    def then(self, segment: bytes, context: bytes) -> Link:
        """Return where it stands after one more entry.

        Args:
            segment: Digest of the entry's segment, 32 bytes; empty where it has none.
            context: Its context as canonical JSON.
        """
        return Link(
            hashlib.blake2b(_parts(self.anchor, segment, context), digest_size=ANCHOR_BYTES).digest(),
            hashlib.blake2b(_parts(self.digest, segment, context), digest_size=DIGEST_BYTES).digest(),
        )


def _parts(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log.

    Attributes:
        session: Id of the session in its store.
        number: Its place in the session's log, from 0.
        kind: One of append, tokens, checkpoint, rewind, pop, branch, forget.
        parent: Id of the entry whose state this one goes on from, None for the first; of another session for a branch.
        start: Tokens before it.
        end: Tokens of the session after it.
        segment: Digest of what it adds, hexadecimal; "" where it adds nothing.
        context: What is anchored beside the segment.
        anchor: 16 hexadecimal digits.
        digest: 64 hexadecimal digits.
    """

    session: int
    number: int
    kind: str
    parent: int | None
    start: int
    end: int
    segment: str
    context: Mapping[str, Any]
    anchor: str
    digest: str

    @property
    def id(self) -> int:
        """Its id in the store."""
        return self.session * SESSION_SPAN + self.number

    @property
    def name(self) -> str:
        """The name that it gives or takes, "" for none."""
        return str(self.context.get("name", ""))

    @property
    def link(self) -> Link:
        """Where the chain stands after it."""
        return Link(bytes.fromhex(self.anchor), bytes.fromhex(self.digest))

    def to_json(self) -> dict[str, Any]:
        """Return what it says, JSON-able."""
        return {"number": self.number, "segment": self.segment, "anchor": self.anchor, "digest": self.digest} | dict(
            self.context
        )


def entry_of(row: sqlite3.Row) -> Entry:
    """Return the entry of a row of the table `entries`."""
    session, number = divmod(row["id"], SESSION_SPAN)
    return Entry(
        session=session,
        number=number,
        kind=row["kind"],
        parent=row["parent"],
        start=row["start"],
        end=row["end"],
        segment=bytes(row["segment"] or b"").hex(),
        context=json.loads(row["context"]),
        anchor=bytes(row["anchor"]).hex(),
        digest=bytes(row["digest"]).hex(),
    )


def context_of(
    number: int, kind: str, parent: int | str | None, start: int, end: int, said: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the context of an entry: what its row says, and what is said beside.

    It names nothing by the numbers that one store gives its sessions, so a log reads the same wherever it is taken.
    """
    return {**said, "number": number, "kind": kind, "parent": parent, "tokens": [start, end]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of a log found.

    Attributes:
        entries: How many entries are in order, from the first one on.
        kind: What happened to the first bad one: "edit", "reorder", "removal", "truncation", "segment" (its file is
            missing or was changed), "name" or "origin" (what the tables say beside the log); "" where all are in order.
        bad: Number of the first bad entry, None where all are in order.
        what: The same in a sentence.
        link: Where the chain stands after the entries in order.
    """

    entries: int
    kind: str = ""
    bad: int | None = None
    what: str = ""
    link: Link = Link()

    @property
    def ok(self) -> bool:
        """Whether all entries are in order."""
        return self.bad is None


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry as its row holds it, nothing of it believed yet.

    Attributes:
        number: Where it lies.
        columns: kind, parent, start, end as its columns say; parent as a context names it.
        segment: Digest of its segment, empty for none.
        context: Its context, canonical JSON.
        says: What the context says; empty where it is none.
        link: Its anchor and digest.
    """

    number: int
    columns: tuple[Any, Any, Any, Any]
    segment: bytes
    context: bytes
    says: Mapping[str, Any]
    link: Link

    @classmethod
    def of(cls, row: sqlite3.Row, cover: Cover = PLAIN) -> Stored:
        """Return the same of a row of `CHAIN` as it lies there; what has the wrong type becomes what no chain holds."""
        columns = (row["kind"], _parent(row), row["start"], row["end"])
        segment, context = _bytes(row["segment"]), _bytes(cover.whole(row["context"]))
        link = Link(_bytes(row["anchor"]), _bytes(row["digest"]))
        try:
            says = json.loads(context)
        except (ValueError, RecursionError):
            says = {}
        return cls(row["id"] % SESSION_SPAN, columns, segment, context, says if isinstance(says, dict) else {}, link)

    @property
    def agrees(self) -> bool:
        """Whether its columns say what its context says, in the one way of writing it."""
        span = [self.columns[2], self.columns[3]]
        told = (self.says.get("kind"), self.says.get("parent"), self.says.get("tokens"))
        return told == (*self.columns[:2], span) and canonical_json(self.says) == self.context


CHAIN = (
    "SELECT entries.*, (SELECT digest FROM entries AS other WHERE other.id = entries.parent) AS parent_digest "
    "FROM entries WHERE id >= ? AND id < ? ORDER BY id"
)
"""Asks for the entries of a span of ids, each with the digest of its parent."""


def _parent(row: sqlite3.Row) -> int | str | None:
    """Return a row's parent as a context names it."""
    parent, session = row["parent"], row["id"] // SESSION_SPAN
    if type(parent) is not int:
        return None if parent is None else ""
    here = parent // SESSION_SPAN == session
    return parent % SESSION_SPAN if here else _bytes(row["parent_digest"]).hex()


def verify_chain(rows: Iterable[Stored], count: int, last: Link, before: Link | None = None) -> Verdict:
    """Follow a chain and name the first entry that is not as it was written.

    Args:
        rows: The entries, ascending by number.
        count: How many there should be.
        last: Where the chain should stand after the last one.
        before: Where it stands before the first one; zeros where None.
    """
    held = list(rows)
    links, link = {row.number for row in held}, before or Link()
    said = {number for row in held if isinstance(number := row.says.get("number"), int)}
    for expected, row in enumerate(held):
        if row.number != expected:
            return Verdict(expected, *_missing(expected, count, links), link)
        found = link.then(row.segment, row.context)
        number = row.says.get("number")
        if found == row.link and number == expected and row.agrees:
            link = found
            continue
        return Verdict(expected, *_bad(expected, number, said, count), link)
    if len(held) < count:
        return Verdict(len(held), *_missing(len(held), count, links), link)
    if len(held) > count:
        return Verdict(count, EDIT, count, f"entry {count} was added: the session has {count} entries", link)
    if link != last:
        what = f"the chain ends in another digest than the session's: entry {count - 1} or one before it was rewritten"
        return Verdict(max(count - 1, 0), EDIT, max(count - 1, 0), what, link)
    return Verdict(count, link=link)


def _missing(number: int, count: int, held: set[int]) -> tuple[str, int, str]:
    """Tell whether an entry that is not there is one of the last or from the middle."""
    if any(other > number for other in held):
        return REMOVAL, number, f"entry {number} is missing: it was removed"
    return TRUNCATION, number, f"entries {number} to {count - 1} are missing: the log was cut off"


def _bad(expected: int, number: Any, said: set[Any], count: int) -> tuple[str, int, str]:
    """Tell what happened to an entry that does not continue the chain."""
    if number != expected and isinstance(number, int) and 0 <= number < count:
        if expected in said:
            return REORDER, expected, f"entry {number} stands at place {expected}: the order was changed"
        return REMOVAL, expected, f"entry {expected} is missing, entry {number} stands in its place: it was removed"
    return EDIT, expected, f"entry {expected} was changed: it does not continue the chain"


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    return value if type(value) is bytes else b""
