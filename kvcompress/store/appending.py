"""How an entry comes into a log: its segment is on the disk first, then one transaction adds what points at it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kvcompress.errors import InputError, KVCompressError, MismatchError
from kvcompress.format.strict_json import canonical_json
from kvcompress.snapshot import KVSnapshot, Origin
from kvcompress.store.collect import require_room
from kvcompress.store.cover import cover_of
from kvcompress.store.crypto import changed_key
from kvcompress.store.fence import claim, require_writable
from kvcompress.store.log import APPEND, TOKENS, Entry
from kvcompress.store.objects import content_digest
from kvcompress.store.provenance import facts_of, model_digest
from kvcompress.store.rows import NewEntry, NewSegment, State, add, state_of_session
from kvcompress.store.schema import AFTER
from kvcompress.store.segment import (
    Coding,
    encode_part,
    part_of,
    prefix_digest,
    prefix_digests,
    read_part,
    tokens_part,
)

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession
    from kvcompress.store.store import Store

LOSSLESS = "lossless"
MOST_CANDIDATES = 4
"""Segments of the same tokens that are tried: more than these were coded in other ways."""

ENTRY_BYTES = 16 << 10
"""What a commit adds to the database, at most about."""


def append(
    session: StoredSession,
    snapshot: KVSnapshot,
    how: Coding,
    cuts: Sequence[int],
    said: Mapping[str, Any],
) -> Entry:
    """See `StoredSession.append`."""
    with session.lock:
        require_writable(session)
        state = state_of_session(session)
        _require_continuation(session, state, snapshot.token_ids, snapshot.origin)
        if snapshot.tokens == state.tokens and state.head is not None:
            return state.head
        segments = list(_segments(session, state, snapshot, how, cuts))
        context = {"said": dict(said)} if said else {}
        return _commit(session, state, snapshot.origin, segments, APPEND, context)


def append_tokens(
    session: StoredSession, token_ids: Tensor, snapshot: KVSnapshot | None, said: Mapping[str, Any]
) -> Entry:
    """See `StoredSession.append_tokens`."""
    with session.lock:
        require_writable(session)
        state = state_of_session(session)
        if snapshot is None and not state.origin:
            raise InputError("the session has no origin yet", "Give a snapshot of its model")
        origin = snapshot.origin if snapshot is not None else session.store.origin(state.origin)
        _require_continuation(session, state, token_ids, origin)
        if len(token_ids) == state.tokens and state.head is not None:
            return state.head
        grown = Origin.from_json(origin.to_json() | {"next_position": len(token_ids)})
        data = tokens_part(token_ids, state.tokens, state.parent, grown)
        segment = _segment(session, token_ids, state.tokens, state.parent, data)
        context = {"why": "token ids alone"} | ({"said": dict(said)} if said else {})
        return _commit(session, state, grown, [segment], TOKENS, context)


def _require_continuation(session: StoredSession, state: State, token_ids: Tensor, origin: Origin) -> None:
    """Raise unless tokens and origin go on from a state."""
    if state.origin:
        known = session.store.origin(state.origin)
        known.fingerprint.require_match(origin.fingerprint)
        for part, expected, found in (
            ("the cache's data type", known.dtype, origin.dtype),
            ("the number of layers", str(len(known.layer_kinds)), str(len(origin.layer_kinds))),
            ("the kinds of layers", ", ".join(known.layer_kinds)[:60], ", ".join(origin.layer_kinds)[:60]),
        ):
            if expected != found:
                raise MismatchError(part, expected, found, "Record with the model as it was, or begin another session")
    key = session.store.digest_key
    begins = len(token_ids) >= state.tokens and (
        not state.tokens or prefix_digest(token_ids[: state.tokens], key).hex() == state.prefix
    )
    if not begins:
        what = f"the tokens do not begin with the {state.tokens} that session {session.name!r} holds"
        raise InputError(what, "Rewind the session to what they share, or branch")


def _segments(
    session: StoredSession,
    state: State,
    snapshot: KVSnapshot,
    how: Coding,
    cuts: Sequence[int],
) -> Iterator[NewSegment]:
    """Yield the segments that a snapshot adds, cut where others have been."""
    start, parent, store = state.tokens, state.parent, session.store
    sharing = whole = all(len(layer.positions) == snapshot.tokens for layer in snapshot.layers)
    while start < snapshot.tokens:
        found = _shared(session, parent, start, snapshot, how) if sharing else None
        sharing = found is not None
        if found is None:
            ends = (cut for cut in cuts if whole and start < cut < snapshot.tokens)
            end = min(ends, default=snapshot.tokens)
            cut = snapshot if end == snapshot.tokens else part_of(snapshot, 0, end)
            data = encode_part(cut, start, parent, how, store.codecs)
            found = _segment(session, snapshot.token_ids[:end], start, parent, data)
        yield found
        start, parent = found.end, found.digest


def _shared(session: StoredSession, parent: str, start: int, snapshot: KVSnapshot, how: Coding) -> NewSegment | None:
    """Return the longest stored segment that stands for the same tokens after a parent; None for none."""
    store, ids = session.store, snapshot.token_ids
    asked = f"SELECT end, prefix, digest FROM segments WHERE {AFTER} AND end > :start AND end <= :end ORDER BY end DESC"
    with store.database.read() as tables:
        values = {"parent": bytes.fromhex(parent), "start": start, "end": len(ids)}
        rows = tables.execute(asked, values).fetchall()
    digests = prefix_digests(ids, {int(row["end"]) for row in rows}, store.digest_key)
    alike = [row for row in rows if bytes(row["prefix"]) == digests[row["end"]]]
    for row in alike[:MOST_CANDIDATES]:
        end, digest = int(row["end"]), bytes(row["digest"]).hex()
        try:
            data = store.segment_bytes(digest)
            part = read_part(data)
        except KVCompressError:  # damaged, or gone meanwhile: it is coded again
            continue
        if how.lossless and part.encoded.codec == LOSSLESS:
            data = encode_part(part_of(snapshot, 0, end), start, parent, how, store.codecs)
        elif not how.is_of(part, snapshot, store.codecs):
            continue
        found = _segment(session, ids[:end], start, parent, data)
        if found.digest == digest:
            return found
    return None


def _segment(session: StoredSession, token_ids: Tensor, start: int, parent: str, data: bytes) -> NewSegment:
    key = session.store.digest_key
    return NewSegment(content_digest(data, key), parent, start, len(token_ids), prefix_digest(token_ids, key), data)


def _commit(
    session: StoredSession,
    state: State,
    origin: Origin,
    segments: Sequence[NewSegment],
    kind: str,
    said: Mapping[str, Any],
) -> Entry:
    """Write the files, then the rows that make them part of the session."""
    store, entry = session.store, None
    cover = store.cover
    limit = store.settings.get("max_bytes")
    if limit is not None:
        require_room(store, sum(len(segment.data) for segment in segments) + ENTRY_BYTES, int(limit))
    else:
        for segment in segments:
            store.written(store.objects.put(segment.digest, segment.data))
    with store.database.write() as tables:
        claim(tables, session, state.entries)
        if store.cover is not cover:  # the files were encrypted with a key that another thread has exchanged
            raise changed_key()
        if limit is not None:  # one writer at a time, so that all together keep the limit
            require_within(store, tables, segments, int(limit))
        if not state.origin:
            _keep_origin(tables, session, origin)
        parent = state.head.id if state.head is not None else None
        for segment in segments:
            facts = {"prefix": segment.prefix.hex(), "bytes": len(segment.data), "after": segment.parent}
            context = {**said, **facts, "model": model_digest(origin.fingerprint), **facts_of(segment.data, store)}
            new = NewEntry(kind, parent, segment.start, segment.end, segment, context)
            entry = add(tables, session, new)
            parent = entry.id
    assert entry is not None
    return entry


def require_within(store: Store, tables: sqlite3.Connection, segments: Sequence[NewSegment], limit: int) -> None:
    """Write the files of segments within a transaction, unless the store would grow beyond its limit."""
    stored = int(tables.execute("SELECT stored_bytes FROM store").fetchone()[0])
    fresh = [segment for segment in segments if store.objects.size(segment.digest) is None]
    need = sum(len(segment.data) for segment in fresh)
    total = stored + store.database.size_bytes() + need + ENTRY_BYTES
    if total > limit:
        raise InputError(
            f"the store would take {total} bytes, more than its limit of {limit}", "Raise it, or try again"
        )
    for segment in fresh:
        store.written(store.objects.put(segment.digest, segment.data))


def _keep_origin(tables: sqlite3.Connection, session: StoredSession, origin: Origin) -> None:
    """Note what all snapshots of a session have in common; equal ones are kept once."""
    text = canonical_json(origin.to_json() | {"next_position": 0})
    digest = content_digest(text, session.store.digest_key)
    tables.execute("INSERT OR IGNORE INTO origins VALUES (?, ?)", (digest, cover_of(tables).text(text)))
    tables.execute("UPDATE sessions SET origin = ? WHERE id = ?", (digest, session.id))
