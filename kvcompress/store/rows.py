"""Rows of the tables: what an entry and a segment add to them, within a transaction of the session's writer."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcompress.errors import InputError, IntegrityError
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.columns import RESTORE, session_row
from kvcompress.store.cover import cover_of
from kvcompress.store.database import SESSION_SPAN, entry_id
from kvcompress.store.log import TURNS, Entry, Link, context_of, entry_of
from kvcompress.store.path import path_rows
from kvcompress.store.signing import SIGNATURE

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession

PRODUCER = "kvcompress"


@dataclass(frozen=True, slots=True)
class State:
    """What an entry is added to.

    Attributes:
        entries: Entries of the log.
        head: The newest one, None where there is none.
        tokens: Tokens of the state.
        parent: Digest of its last segment, "" where there is none.
        prefix: Digest of its token ids, hexadecimal.
        origin: Digest of the session's origin, "" where it has none yet.
    """

    entries: int
    head: Entry | None
    tokens: int
    parent: str
    prefix: str
    origin: str


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment that is to be held.

    Attributes:
        digest: Of its content.
        parent: Digest of the segment before it, "" for none.
        start: Tokens before it.
        end: Tokens after it.
        prefix: Digest of all token ids up to its end.
        data: Its content.
    """

    digest: str
    parent: str
    start: int
    end: int
    prefix: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry that is to be added.

    Attributes:
        kind: See `Entry`.
        parent: Id of the entry that it goes on from.
        start: Tokens before it.
        end: Tokens after it.
        segment: What it adds.
        said: What goes into its context.
    """

    kind: str
    parent: int | None
    start: int
    end: int
    segment: NewSegment | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


def state_of_session(session: StoredSession) -> State:
    """Return the present state of a session."""
    with session.store.database.read() as tables:
        row = session_row(tables, session.id)
        count, origin = row["entries"], row["origin"] or ""
        if not count:
            return State(0, None, 0, "", "", origin)
        found = tables.execute("SELECT * FROM entries WHERE id = ?", (entry_id(session.id, count - 1),)).fetchone()
        if found is None:
            raise InputError(f"the log of {session.name!r} was cut off", "See `kvcompress store verify`")
        head = entry_of(found)
        turns = path_rows(tables, head.id, TURNS, most=1)
    last = entry_of(turns[0]) if turns else None
    prefix = str(last.context.get("prefix", "")) if last else ""
    return State(count, head, head.end, last.segment if last else "", prefix, origin)


def add(tables: sqlite3.Connection, session: StoredSession, new: NewEntry) -> Entry:
    """Add an entry within a transaction of its session's writer."""
    row = session_row(tables, session.id)
    number, now, cover = int(row["entries"]), round(time.time(), 3), cover_of(tables)
    said = {"time": now, "producer": PRODUCER, **cover.salt(), **new.said}
    context = context_of(number, new.kind, _named(tables, session, new.parent), new.start, new.end, said)
    before, segment = Link(bytes(row["anchor"]), bytes(row["digest"])), b""
    if new.segment is not None:
        segment = bytes.fromhex(new.segment.digest)
        hold(tables, session, new.segment, now)
    if session.store.signer is not None:
        context[SIGNATURE] = session.store.signer.entry(before.digest, segment, context)
    text = canonical_json(context)
    link = before.then(segment, text)
    tables.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry_id(session.id, number),
            new.parent,
            new.kind,
            new.start,
            new.end,
            segment or None,
            cover.text(text),
            link.anchor,
            link.digest,
            int(bool(segment)),
        ),
    )
    tables.execute(
        "UPDATE sessions SET entries = ?, anchor = ?, digest = ?, used = ? WHERE id = ?",
        (number + 1, link.anchor, link.digest, now, session.id),
    )
    found = tables.execute("SELECT * FROM entries WHERE id = ?", (entry_id(session.id, number),)).fetchone()
    return entry_of(found)


def _named(tables: sqlite3.Connection, session: StoredSession, parent: int | None) -> int | str | None:
    """Return what a context calls a parent: its number in the same log, or the digest of one in another log."""
    if parent is None or parent // SESSION_SPAN == session.id:
        return None if parent is None else parent % SESSION_SPAN
    row = tables.execute("SELECT digest FROM entries WHERE id = ?", (parent,)).fetchone()
    if row is None:
        raise IntegrityError("the entry to go on from is missing", RESTORE)
    return bytes(row["digest"]).hex()


def hold(tables: sqlite3.Connection, session: StoredSession, segment: NewSegment, now: float) -> None:
    """Count one more entry that holds a segment, whose file must be there.

    Collecting deletes files within a transaction, so a file that is seen inside of one stays.
    """
    store, digest = session.store, bytes.fromhex(segment.digest)
    size = store.objects.size(segment.digest)
    if size is None:
        store.put(segment.data)
        size = store.objects.size(segment.digest) or 0
    row = tables.execute("SELECT bytes, tokens FROM segments WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        values = (digest, bytes.fromhex(segment.parent), segment.end, segment.prefix, size, now, now)
        tables.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, 1, ?, ?, NULL)", values)
    else:  # one that had made room is whole again
        asked = "UPDATE segments SET uses = uses + 1, used = ?, bytes = ?, tokens = NULL WHERE digest = ?"
        tables.execute(asked, (now, size, digest))
        if row["tokens"] is not None:
            tables.execute("UPDATE segments SET uses = uses - 1 WHERE digest = ?", (row["tokens"],))
    new_bytes = size - (0 if row is None else row["bytes"])
    tables.execute(
        "UPDATE store SET stored_bytes = stored_bytes + ?, added_bytes = added_bytes + ?",
        (new_bytes, size if row is None else 0),
    )
