"""A session outside its store: its log and those that it branched from, cut into pieces, and a head that names them.

```
head     session, and for each log: name, time, origin, how many entries, their pieces; the session's own log comes last
piece    up to 256 entries of a log, from a multiple of 256 on: segment, context, anchor, digest, what is held
```
A portable file and a remote place hold the same: a head, pieces and segments, the last two named by their digests. All
of it may come from anybody, so nothing is believed before the chain, the parents and the tokens agree.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kvcompress.errors import InputError
from kvcompress.format.strict_json import parse_json
from kvcompress.store.database import SESSION_SPAN, entry_id
from kvcompress.store.log import TURNS, Link
from kvcompress.store.path import path_ids

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession


@dataclass(frozen=True, slots=True)
class Row:
    """One entry.

    Attributes:
        segment: Digest of what it adds, hexadecimal; "" for nothing.
        context: Canonical JSON.
        says: The same, parsed.
        link: Where the chain stands after it.
        held: Digest of the file that comes along for the segment: its own, that of its token ids alone, "" for none.
    """

    segment: str
    context: bytes
    says: Mapping[str, Any]
    link: Link
    held: str = ""

    @property
    def is_turn(self) -> bool:
        """Whether it adds tokens."""
        return self.says["kind"] in TURNS

    @property
    def span(self) -> tuple[int, int]:
        """Tokens before and after it."""
        start, end = self.says["tokens"]
        return int(start), int(end)


@dataclass(frozen=True, slots=True)
class Log:
    """The entries of a session, from the first one on.

    Attributes:
        name: Of the session; "" where it was removed.
        created: Seconds since 1970.
        origin: JSON of what its snapshots have in common, None where there is none yet.
        rows: The entries.
    """

    name: str
    created: float
    origin: Mapping[str, Any] | None
    rows: tuple[Row, ...]

    @property
    def digest(self) -> str:
        """Of the last entry."""
        return (self.rows[-1].link if self.rows else Link()).digest.hex()


@dataclass(frozen=True, slots=True)
class LogHead:
    """What a head says of a log; `pieces` are pairs of a piece's digest and the digest of its last entry."""

    name: str
    created: float
    origin: Mapping[str, Any] | None
    entries: int
    digest: str
    pieces: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """What leads to everything else; `sequence` counts how often a place has taken a new one."""

    session: str
    sequence: int
    logs: tuple[LogHead, ...]

    @property
    def own(self) -> LogHead:
        """The session's own log."""
        return self.logs[-1]


class Source(Protocol):
    """Where a session comes from; what it gives is readable, whatever lies there."""

    @property
    def digest_key(self) -> bytes:
        """Key of the digests there; empty where nothing is encrypted."""
        ...

    def piece(self, digest: str) -> bytes:
        """Return a piece of a log, at most `MOST_PIECE_BYTES`."""
        ...

    def segment(self, digest: str) -> bytes:
        """Return a segment."""
        ...


# -- out of a store


def gather(session: StoredSession) -> tuple[Log, ...]:
    """Return the logs that a session is made of, as they are now: those that it branched from, then its own."""
    with session.store.database.read() as tables:
        held = {bytes(row[0]): bytes(row[1] or row[0]) for row in tables.execute("SELECT digest, tokens FROM segments")}
        count = tables.execute("SELECT entries FROM sessions WHERE id = ?", (session.id,)).fetchone()["entries"]
        lengths, ways = {session.id: int(count)}, set[int]()
        todo = [session.id]
        while todo:
            log = todo.pop()
            for parent in _elsewhere(tables, log, lengths[log]):
                ways.update(path_ids(tables, parent))
                other, number = divmod(parent, SESSION_SPAN)
                if lengths.get(other, 0) <= number:
                    lengths[other] = number + 1
                    todo.append(other)
        whole: set[int] = set()
        return tuple(
            _log(tables, log, lengths[log], held, whole, None if log == session.id else ways) for log in sorted(lengths)
        )


def _elsewhere(tables: sqlite3.Connection, log: int, count: int) -> list[int]:
    """Return the ids of entries of other logs that entries of this one go on from."""
    span = (entry_id(log, 0), entry_id(log, count), log, SESSION_SPAN)
    asked = "SELECT DISTINCT parent FROM entries WHERE id >= ? AND id < ? AND parent / ?4 != ?3"
    return [int(row[0]) for row in tables.execute(asked, span)]


def _log(
    tables: sqlite3.Connection,
    log: int,
    count: int,
    held: Mapping[bytes, bytes],
    whole: set[int],
    ways: set[int] | None,
) -> Log:
    """Return a log; `whole` gets the ids of entries whose state can be told from segments that come along."""
    facts = tables.execute("SELECT * FROM sessions WHERE id = ?", (log,)).fetchone()
    rows = []
    span = (entry_id(log, 0), entry_id(log, count))
    for row in tables.execute("SELECT * FROM entries WHERE id >= ? AND id < ? ORDER BY id", span):
        segment = bytes(row["segment"] or b"")
        reached = row["parent"] is None or row["parent"] in whole
        comes = reached and bool(row["held"]) and segment in held and (ways is None or row["id"] in ways)
        if reached and (comes or not segment):
            whole.add(row["id"])
        rows.append(_row(row, segment.hex(), held[segment].hex() if comes else ""))
    origin = tables.execute("SELECT origin FROM origins WHERE digest = ?", (facts["origin"],)).fetchone()
    said = None if origin is None else parse_json(origin["origin"].encode(), "the origin of a session")
    return Log(facts["name"] or "", facts["created"], said, tuple(rows))


def _row(row: sqlite3.Row, segment: str, held: str) -> Row:
    context = row["context"].encode()
    link = Link(bytes(row["anchor"]), bytes(row["digest"]))
    return Row(segment, context, parse_json(context, "the context of an entry"), link, held)


def diverged(name: str, place: object, entries: int) -> InputError:
    """Return the error that two logs of one name went on differently."""
    what = f"session {name!r} went on differently here and at {place}: the logs share less than {entries} entries"
    remedy = "Branch it here and sync the branch, or take the other one under another name with --as NAME"
    return InputError(what, remedy)
