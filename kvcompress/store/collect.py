"""What a store lets go: segments that nothing leads to, left-overs of interrupted writes, what a limit squeezes out.

```
kept        the end of every session, its named checkpoints, its last automatic ones, and all on the way to these
made room   a segment that is in the way of a limit: its token ids stay, a model computes the rest again
```
Files are deleted within the transaction that takes their rows away. A writer looks for its file within its own, so
none is deleted that an entry is about to point at.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kvcompress.errors import InputError, KVCompressError
from kvcompress.store.columns import session_row
from kvcompress.store.database import SESSION_SPAN, entry_id
from kvcompress.store.log import CHECKPOINT, entry_of
from kvcompress.store.objects import content_digest
from kvcompress.store.path import path_ids
from kvcompress.store.segment import read_part, tokens_part

if TYPE_CHECKING:
    from kvcompress.store.store import Store

BATCH = 500
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Collected:
    """What was let go.

    Attributes:
        segments: Segments that nothing led to.
        files: Left-overs of interrupted writes.
        squeezed: Segments of which the token ids alone are left.
        freed_bytes: What all of it took on the disk.
    """

    segments: int = 0
    files: int = 0
    squeezed: int = 0
    freed_bytes: int = 0


def collect(store: Store, grace_seconds: float, keep_last: int | None) -> Collected:
    """See `Store.gc`."""
    before, now = store.statistics().stored_bytes, time.time()
    segments = _release(store, now - grace_seconds, keep_last)
    files, swept = _sweep(store, now - grace_seconds)
    limit, squeezed = store.settings.get("max_bytes"), 0
    if limit is not None:
        squeezed = _squeeze(store, int(limit), 0)
    store.database.checkpoint(shrink=True)
    return Collected(segments, files, squeezed, before - store.statistics().stored_bytes + swept)


def require_room(store: Store, need_bytes: int, limit: int) -> None:
    """Make room for so many bytes below a limit.

    Raises:
        InputError: What is left has to stay.
    """
    if _taken(store) + need_bytes <= limit:
        return
    store.database.checkpoint(shrink=True)
    if _taken(store) + need_bytes > limit:
        _release(store, time.time(), None)
    if _taken(store) + need_bytes > limit:
        _squeeze(store, limit, need_bytes)
    taken = _taken(store)
    if taken + need_bytes > limit:
        what = f"{need_bytes} more bytes do not fit: the store takes {taken} of {limit}, and what is left has to stay"
        raise InputError(what, "Raise the limit, or forget names and sessions", path=store.path)


def _taken(store: Store) -> int:
    found = store.statistics()
    return found.stored_bytes + found.database_bytes


def _release(store: Store, before: float, keep_last: int | None) -> int:
    """Let entries that nothing leads to go of their segments, and delete segments that no entry holds any more."""
    with store.database.write() as tables:
        kept = _kept(tables, keep_last)
        held = tables.execute("SELECT id, segment FROM entries WHERE held = 1").fetchall()
        for row in held:
            if row["id"] in kept:
                continue
            young = "SELECT 1 FROM segments WHERE digest = ? AND used > ?"
            if tables.execute(young, (row["segment"], before)).fetchone():
                continue
            tables.execute("UPDATE entries SET held = 0 WHERE id = ?", (row["id"],))
            tables.execute("UPDATE segments SET uses = uses - 1 WHERE digest = ?", (row["segment"],))
    count = 0
    while batch := _delete_unused(store):
        count += batch
    return count


def _kept(tables: sqlite3.Connection, keep_last: int | None) -> set[int]:
    """Return the ids of all entries that something leads to."""
    kept: set[int] = set()
    for root in _roots(tables, keep_last):
        if root not in kept:
            kept.update(path_ids(tables, root))
    return kept


def _roots(tables: sqlite3.Connection, keep_last: int | None) -> Iterator[int]:
    sessions = tables.execute("SELECT id, entries FROM sessions WHERE name IS NOT NULL AND entries > 0").fetchall()
    for row in sessions:
        yield entry_id(row["id"], row["entries"] - 1)
        span = (CHECKPOINT, entry_id(row["id"], 0), entry_id(row["id"] + 1, 0))
        asked = "SELECT * FROM entries WHERE kind = ? AND id >= ? AND id < ? ORDER BY id DESC"
        marks = tables.execute(asked, span).fetchall()
        automatic = (found["id"] for found in marks if not entry_of(found).name)
        yield from islice(automatic, keep_last)
    for row in tables.execute("SELECT session, number FROM names").fetchall():
        yield entry_id(row["session"], row["number"])


def _delete_unused(store: Store) -> int:
    """Delete some segments that no entry holds, files and rows; return how many."""
    with store.database.write() as tables:
        rows = tables.execute("SELECT digest, bytes, tokens FROM segments WHERE uses <= 0 LIMIT ?", (BATCH,)).fetchall()
        for row in rows:
            _delete(store, tables, row)
    return len(rows)


def _delete(store: Store, tables: sqlite3.Connection, row: sqlite3.Row) -> None:
    store.objects.delete(bytes(row["digest"]).hex())
    tables.execute("DELETE FROM segments WHERE digest = ?", (row["digest"],))
    tables.execute("UPDATE store SET stored_bytes = stored_bytes - ?", (row["bytes"],))
    if row["tokens"] is not None:
        tables.execute("UPDATE segments SET uses = uses - 1 WHERE digest = ?", (row["tokens"],))


def _sweep(store: Store, before: float) -> tuple[int, int]:
    """Delete files that belong to no segment and are older than `before`; return how many, and their bytes."""
    count = swept = 0
    old = (found for found in store.objects.found() if found.modified < before)
    for some in _batches(old):
        with store.database.write() as tables:
            for found in some:
                asked = "SELECT 1 FROM segments WHERE digest = ?"
                if found.name and tables.execute(asked, (bytes.fromhex(found.name),)).fetchone():
                    continue
                store.objects.sweep(found)
                count, swept = count + 1, swept + found.size_bytes
    return count, swept


def _squeeze(store: Store, limit: int, need_bytes: int) -> int:
    """Leave of some segments the token ids alone, until so many bytes fit; return how many."""
    order = "segments.created" if store.settings.get("evict") == "age" else "segments.used"
    count = 0
    with store.database.read() as tables:
        named = _named_segments(tables)
        asked = f"SELECT digest FROM segments WHERE uses > 0 AND tokens IS NULL AND bytes > 0 ORDER BY {order}, end"
        candidates = [bytes(row["digest"]) for row in tables.execute(asked) if bytes(row["digest"]) not in named]
    for digest in candidates:
        if _taken(store) + need_bytes <= limit:
            break
        try:
            count += _leave_tokens(store, digest)
        except KVCompressError:  # a damaged or missing file makes no room
            continue
    return count


def _named_segments(tables: sqlite3.Connection) -> set[bytes]:
    """Return the segments on the way to a named checkpoint."""
    ids: set[int] = set()
    for row in tables.execute("SELECT session, number FROM names").fetchall():
        root = entry_id(row["session"], row["number"])
        if root not in ids:
            ids.update(path_ids(tables, root))
    found: set[bytes] = set()
    for some in _batches(ids):
        marks = ", ".join("?" * len(some))
        asked = f"SELECT segment FROM entries WHERE id IN ({marks}) AND segment IS NOT NULL"
        found.update(bytes(row["segment"]) for row in tables.execute(asked, some))
    return found


def _leave_tokens(store: Store, digest: bytes) -> int:
    """Put a segment's token ids in its place; return 1, or 0 where they take no less."""
    part = read_part(store.segment_bytes(digest.hex()))
    if part.is_tokens_only:
        return 0
    data = tokens_part(_padded(part), part.start, part.parent, _origin_of(store, digest))
    name = content_digest(data, store.digest_key)
    store.written(store.objects.put(name, data))
    held = bytes.fromhex(name)
    with store.database.write() as tables:
        row = tables.execute("SELECT * FROM segments WHERE digest = ? AND tokens IS NULL", (digest,)).fetchone()
        if row is None or row["bytes"] <= len(data):
            return 0
        size = store.objects.size(name) or store.written(store.objects.put(name, data)) or len(data)
        found = tables.execute("SELECT bytes FROM segments WHERE digest = ?", (held,)).fetchone()
        if found is None:
            values = (held, row["parent"], row["end"], row["prefix"], size, row["created"], row["used"])
            tables.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, 1, ?, ?, NULL)", values)
        else:
            tables.execute("UPDATE segments SET uses = uses + 1 WHERE digest = ?", (held,))
        grown = (size if found is None else 0) - row["bytes"]
        tables.execute("UPDATE segments SET tokens = ?, bytes = 0 WHERE digest = ?", (held, digest))
        tables.execute("UPDATE store SET stored_bytes = stored_bytes + ?", (grown,))
        store.objects.delete(digest.hex())
    return 1


def _padded(part: Any) -> torch.Tensor:
    """Return ids of which those before the segment are not looked at."""
    return torch.cat([torch.zeros(part.start, dtype=torch.int64), part.token_ids])


def _origin_of(store: Store, digest: bytes) -> Any:
    """Return the origin of the session that a segment belongs to, with its place to go on from."""
    with store.database.read() as tables:
        row = tables.execute("SELECT id, end FROM entries WHERE segment = ? LIMIT 1", (digest,)).fetchone()
        if row is None:
            raise InputError("no entry holds the segment")
        origin = session_row(tables, row["id"] // SESSION_SPAN)["origin"]
    return replace(store.origin(origin), next_position=row["end"])


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield a few hundred at a time."""
    rest = iter(items)
    while some := list(islice(rest, BATCH)):
        yield some
