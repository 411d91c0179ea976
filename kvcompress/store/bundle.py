"""A session outside its store: its log and those that it branched from, cut into pieces, and a head that names them.

```
head     session, and for each log: name, time, origin, how many entries, their pieces; the session's own log comes last
piece    up to 256 entries of a log, from a multiple of 256 on: segment, context, anchor, digest, what is held
```
A portable file and a remote place hold the same: a head, pieces and segments, the last two named by their digests. All
of it may come from anybody, so nothing is believed before the chain, the parents and the tokens agree.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from kvcompress.errors import FormatError, InputError
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.json_section import MAX_TOKENS
from kvcompress.format.strict_json import canonical_json, parse_json
from kvcompress.store.database import SESSION_SPAN, entry_id
from kvcompress.store.log import BRANCH, CHECKPOINT, FORGET, POP, REWIND, TURNS, Link
from kvcompress.store.objects import content_digest
from kvcompress.store.path import path_ids

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession

FORMAT, VERSION = "kvcompress.session", 1
PIECE_ENTRIES = 256
MOST_PIECE_BYTES, MOST_HEAD_BYTES = 8 << 20, 8 << 20
MOST_ENTRIES, MOST_LOGS = 1 << 22, 1 << 10
KINDS = (*TURNS, CHECKPOINT, REWIND, POP, BRANCH, FORGET)
DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{32}")
_ENTRY = ("segment", "context", "anchor", "digest", "held")


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
    """Where a session comes from."""

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


# -- pieces and heads


def pieces_of(log: Log, first: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """Yield digest, digest of the last entry and content of the pieces of a log from the piece `first` on."""
    for start in range(first * PIECE_ENTRIES, len(log.rows), PIECE_ENTRIES):
        rows = log.rows[start : start + PIECE_ENTRIES]
        entries = [
            [row.segment, row.context.decode(), row.link.anchor.hex(), row.link.digest.hex(), row.held] for row in rows
        ]
        data = canonical_json({"first": start, "entries": entries})
        yield content_digest(data), rows[-1].link.digest.hex(), data


def head_of(log: Log, pieces: Sequence[tuple[str, str]]) -> LogHead:
    """Return what a head says of a log."""
    return LogHead(log.name, log.created, log.origin, len(log.rows), log.digest, tuple(pieces))


def pack_head(head: Head) -> bytes:
    """Return a head as canonical JSON."""
    logs = [
        {
            "name": log.name,
            "created": log.created,
            "origin": log.origin,
            "entries": log.entries,
            "digest": log.digest,
            "pieces": [list(piece) for piece in log.pieces],
        }
        for log in head.logs
    ]
    said = {"format": FORMAT, "version": VERSION, "session": head.session, "sequence": head.sequence, "logs": logs}
    return canonical_json(said)


def read_head(data: bytes) -> Head:
    """Read a head.

    Raises:
        FormatError: It is none, or contradicts itself.
    """
    if len(data) > MOST_HEAD_BYTES:
        raise FormatError(f"the head of a session has {len(data)} bytes, more than {MOST_HEAD_BYTES}")
    what = "the head of a session:"
    fields = JsonFields(parse_json(data, "the head of a session"), what)
    if fields.value("format") != FORMAT:
        raise FormatError("the file is no exported session", "Name one that `kvcompress store export` wrote")
    if fields.value("version") != VERSION:
        raise FormatError(f"the exported session has version {fields.value('version')!r}", "Upgrade kvcompress")
    logs = fields.value("logs")
    if not isinstance(logs, list) or not 0 < len(logs) <= MOST_LOGS:
        raise fields.bad("logs", f"a list of 1 to {MOST_LOGS} logs")
    return Head(fields.text("session"), fields.integer("sequence"), tuple(_log_head(log) for log in logs))


def _log_head(value: object) -> LogHead:
    fields = JsonFields(value, "a log of the head:", ("name", "created", "origin", "entries", "digest", "pieces"))
    entries, pieces = fields.integer("entries", MOST_ENTRIES), fields.value("pieces")
    if not isinstance(pieces, list) or len(pieces) != -(-entries // PIECE_ENTRIES):
        raise fields.bad("pieces", f"the list of pieces of {entries} entries")
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_digest, pair)) for pair in pieces):
        raise fields.bad("pieces", "a list of pairs of digests")
    origin, digest, name = fields.value("origin"), fields.value("digest"), fields.value("name")
    if origin is not None and not isinstance(origin, Mapping):
        raise fields.bad("origin", "an object or null")
    if digest != (pieces[-1][1] if pieces else Link().digest.hex()):
        raise fields.bad("digest", "that of the last entry")
    named = fields.text("name") if name else ""
    return LogHead(named, fields.number("created", 0), origin, entries, digest, tuple((a, b) for a, b in pieces))


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


# -- into a store


def read_logs(source: Source, head: Head, known: Callable[[int], Log | None] = lambda place: None) -> tuple[Log, ...]:
    """Return the logs that a head names, each chained from its first entry on, and sound.

    Args:
        source: Where the pieces are.
        head: The head.
        known: What is there already of a log, by its place; equal pieces are not fetched.

    Raises:
        FormatError: Something was changed, or contradicts itself.
    """
    logs = []
    for place, log in enumerate(head.logs):
        here = known(place)
        rows: list[Row] = []
        for index, (digest, last) in enumerate(log.pieces):
            start, end = index * PIECE_ENTRIES, min((index + 1) * PIECE_ENTRIES, log.entries)
            if here is not None and len(here.rows) >= end and here.rows[end - 1].link.digest.hex() == last:
                rows += [replace(row, held="") for row in here.rows[start:end]]
                continue
            rows += _piece(source.piece(digest), digest, start, end - start)
        found = Log(log.name, log.created, log.origin, tuple(rows))
        if found.digest != log.digest:
            raise FormatError(f"the log of {log.name or 'a removed session'!r} does not end as its head says")
        logs.append(found)
    require_sound(logs)
    return tuple(logs)


def _piece(data: bytes, digest: str, first: int, count: int) -> list[Row]:
    """Read a piece."""
    if content_digest(data) != digest:
        raise FormatError(f"the piece {digest[:16]} of a log was changed", "Fetch it again, or from a copy")
    fields = JsonFields(parse_json(data, "a piece of a log"), "a piece of a log:", ("first", "entries"))
    entries = fields.value("entries")
    if fields.integer("first") != first or not isinstance(entries, list) or len(entries) != count:
        raise FormatError(f"a piece of a log does not hold the entries {first} to {first + count - 1}")
    return [_entry(entry, first + index) for index, entry in enumerate(entries)]


def _entry(value: object, number: int) -> Row:
    if not isinstance(value, list) or len(value) != len(_ENTRY) or not all(isinstance(one, str) for one in value):
        raise FormatError(f"entry {number} of a log is not what an entry is")
    segment, context, anchor, digest, held = value
    if not re.fullmatch(r"[0-9a-f]{16}", anchor) or not _is_digest(digest):
        raise FormatError(f"entry {number} of a log has no anchor")
    if any(one and not _is_digest(one) for one in (segment, held)) or (held and not segment):
        raise FormatError(f"entry {number} of a log names an impossible segment")
    says = parse_json(context.encode(errors="surrogatepass"), f"the context of entry {number}")
    if not isinstance(says, dict) or canonical_json(says) != context.encode():
        raise FormatError(f"the context of entry {number} is not in its one way of writing")
    return Row(segment, context.encode(), says, Link(bytes.fromhex(anchor), bytes.fromhex(digest)), held)


def require_sound(logs: Sequence[Log]) -> None:
    """Follow the chains, and what each entry says of the one that it goes on from.

    Raises:
        FormatError: An entry was changed, or contradicts the others.
    """
    ends: dict[str, int] = {}
    for log in logs:
        link, own = Link(), list[Row]()
        for number, row in enumerate(log.rows):
            link = link.then(bytes.fromhex(row.segment), row.context)
            if link != row.link:
                raise FormatError(f"entry {number} of a log was changed: it does not continue the chain")
            _require_place(row, number, own, ends)
            ends[row.link.digest.hex()] = row.span[1]
            own.append(row)


def _require_place(row: Row, number: int, own: Sequence[Row], ends: Mapping[str, int]) -> None:
    """Refuse an entry whose context is none of an entry at its place."""
    says = row.says
    kind, parent, tokens = says.get("kind"), says.get("parent"), says.get("tokens")
    wrong = FormatError(f"entry {number} of a log contradicts itself or those before it")
    if says.get("number") != number or type(says.get("number")) is not int or kind not in KINDS:
        raise wrong
    whole = isinstance(tokens, list) and len(tokens) == 2 and all(type(one) is int for one in tokens)
    if not whole or not 0 <= tokens[0] <= tokens[1] <= MAX_TOKENS:
        raise wrong
    if isinstance(parent, str):
        before = ends.get(parent)
    elif parent is None:
        before = 0
    else:
        before = own[parent].span[1] if type(parent) is int and 0 <= parent < number else None
    turn = kind in TURNS
    if before != tokens[0] or turn != bool(row.segment) or not (turn or tokens[0] == tokens[1]):
        raise wrong
    prefix, name = says.get("prefix"), says.get("name", "")
    if turn and not (isinstance(prefix, str) and _PREFIX.fullmatch(prefix)):
        raise wrong
    if not isinstance(name, str) or not (name.isprintable() and len(name) <= 200):
        raise wrong


def diverged(name: str, place: object, entries: int) -> InputError:
    """Return the error that two logs of one name went on differently."""
    what = f"session {name!r} went on differently here and at {place}: the logs share less than {entries} entries"
    remedy = "Branch it here and sync the branch, or take the other one under another name with --as NAME"
    return InputError(what, remedy)
