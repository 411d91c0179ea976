"""Two stores become equal by way of a place: what is missing goes there or comes from there, and nothing else.

Logs only go on: where both sides have added entries the session has diverged, and that is refused. What an interrupted
run has transferred is found by the next one, segment by segment; the log goes on once all of its segments are there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcompress.errors import InputError
from kvcompress.store.bundle import Head, Log, LogHead, diverged, gather
from kvcompress.store.envelope import enter
from kvcompress.store.objects import checked
from kvcompress.store.pieces import PIECE_ENTRIES, head_of, pieces_of, read_piece
from kvcompress.store.remote import Remote

if TYPE_CHECKING:
    from kvcompress.store.keys import StoreKey
    from kvcompress.store.session import StoredSession
    from kvcompress.store.store import Store

WORKERS = 8
"""Transfers at a time: a place far away answers late and carries much."""

PUSH, PULL, BOTH, NOTHING = "push", "pull", "both", "nothing"


@dataclass(frozen=True, slots=True)
class Synced:
    """What went over.

    Attributes:
        session: Name of the session.
        direction: "push", "pull", or "nothing" where both sides were equal.
        entries: Entries of the log that were missing on the other side.
        segments: Segments that were transferred.
        present: Segments of these entries that were there already.
        transferred_bytes: Of these segments.
        seconds: What it all took.
        latency_seconds: Median of the requests that transfer nothing.
        bytes_per_second: Of the transfers, as many at a time as there were; None where there was none.
    """

    session: str
    direction: str
    entries: int
    segments: int
    present: int
    transferred_bytes: int
    seconds: float
    latency_seconds: float | None
    bytes_per_second: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        return asdict(self)


def sync(
    store: Store,
    address: str,
    names: Sequence[str] | None = None,
    *,
    direction: str = BOTH,
    rename: str | None = None,
    workers: int = WORKERS,
    key: StoreKey | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Synced]:
    """Make sessions here and at an address equal.

    Args:
        store: The store.
        address: A fsspec address, such as a path, `memory://place` or `s3://bucket/place`.
        names: Sessions; None means all that one side has.
        direction: "push" or "pull" alone, or "both".
        rename: With one name and "pull": what to call it here.
        workers: Transfers at a time.
        key: Of the place, where it is another one than that of the store.
        options: Passed on to the file system.

    Raises:
        InputError: A session has diverged, is nowhere, or the address cannot be used; `WrongKeyError` where the place
            has another key.
        FormatError: What came is damaged or was tampered with.
    """
    remote = Remote(address, options=options)
    if rename is not None and (names is None or len(names) != 1 or direction != PULL):
        raise InputError("another name is for one session that is pulled", "Name it, and pull")
    enter(store, remote, key, make=direction != PULL)
    if names is None:
        here = [] if direction == PULL else [info.name for info in store.list() if info.entries]
        names = sorted({*here, *([] if direction == PUSH else remote.sessions())})
    return [_sync(store, remote, name, direction, rename, workers) for name in names]


def _sync(store: Store, remote: Remote, name: str, direction: str, rename: str | None, workers: int) -> Synced:
    """Make one session equal on both sides."""
    start, transfers = time.perf_counter(), len(remote.transfers)
    head, session = remote.head(name), _session(store, rename or name)
    count = len(session) if session is not None else 0
    there = head.own.entries if head is not None else 0
    if head is None and not count:
        raise InputError(f"session {name!r} is neither here nor there", "See `kvcompress store list`")
    ahead = session is not None and count > there
    if direction == BOTH:
        direction = PUSH if ahead else PULL
    if direction == PUSH and session is None:
        raise InputError(f"no session {name!r} in the store", "See `kvcompress store list`", path=store.path)
    if direction == PULL and head is None:
        raise InputError(f"session {name!r} is not there", "Push it first", path=remote.address)
    if session is not None and head is not None and not _agree(session, head.own, min(count, there)):
        raise diverged(name, remote.address, min(count, there))
    if direction == PUSH and session is not None and ahead:
        told = _push(session, remote, head, workers)
    elif direction == PULL and head is not None and there > count:
        told = _pull(store, remote, head, rename, workers)
    else:
        direction, told = NOTHING, (0, 0, 0, 0)
    seconds = time.perf_counter() - start
    entries, segments, present, sent = told
    new = remote.transfers[transfers:]
    busy = sum(spent for _, spent in new) / min(workers, len(new)) if new else 0.0
    rate = sum(size for size, _ in new) / busy if busy else None
    return Synced(rename or name, direction, entries, segments, present, sent, seconds, remote.latency_seconds, rate)


def _session(store: Store, name: str) -> StoredSession | None:
    return store.session(name) if any(info.name == name for info in store.list()) else None


def _agree(session: StoredSession, there: LogHead, shared: int) -> bool:
    """Tell whether two logs may share so many entries: what the head says of entries that this side has, agrees."""
    if not shared:
        return True
    known = [(min((place + 1) * PIECE_ENTRIES, there.entries), last) for place, (_, last) in enumerate(there.pieces)]
    return all(session.entry(count - 1).digest == last for count, last in known if count <= len(session))


def _push(session: StoredSession, remote: Remote, head: Head | None, workers: int) -> tuple[int, int, int, int]:
    """Send what is missing there; return entries, segments, segments that were there, bytes of segments."""
    store, logs = session.store, gather(session)
    known = head.own.entries if head is not None else 0
    fresh = [log.rows[known if place == len(logs) - 1 else 0 :] for place, log in enumerate(logs)]
    if head is not None:  # what it branched from is there since the first push
        fresh[:-1] = [()] * (len(logs) - 1)
    wanted = list({row.held: None for rows in fresh for row in rows if row.held})

    def send(digest: str) -> int:
        if remote.has(digest):
            return 0
        data = checked(store.objects, digest, key=store.digest_key)
        remote.put_segment(digest, data)
        return len(data)

    with ThreadPoolExecutor(workers) as pool:
        sizes = list(pool.map(send, wanted))
    heads, old = [], list[str]()
    for place, log in enumerate(logs):
        before = head.logs[place] if head is not None and len(head.logs) == len(logs) else None
        heads.append(_send_log(remote, log, before))
        if before is not None:
            old += {digest for digest, _ in before.pieces} - {digest for digest, _ in heads[-1].pieces}
    remote.put_head(Head(session.name, head.sequence + 1 if head is not None else 0, tuple(heads)))
    remote.prune(old)
    sent = sum(map(bool, sizes))
    return len(logs[-1].rows) - known, sent, len(sizes) - sent, sum(sizes)


def _send_log(remote: Remote, log: Log, before: LogHead | None) -> LogHead:
    """Send the pieces of a log that are not there; what those there say of the segments that came along stays."""
    if before is not None and before.entries == len(log.rows):
        return before
    kept = [] if before is None else list(before.pieces[: before.entries // PIECE_ENTRIES])
    if before is not None and len(kept) < len(before.pieces):
        first, (digest, _) = len(kept) * PIECE_ENTRIES, before.pieces[-1]
        there = read_piece(remote.piece(digest), digest, first, before.entries - first, remote.digest_key)
        log = replace(log, rows=(*log.rows[:first], *there, *log.rows[before.entries :]))
    for digest, last, data in pieces_of(log, len(kept), remote.digest_key):
        remote.put_piece(digest, data)
        kept.append((digest, last))
    return head_of(log, kept)


def _pull(store: Store, remote: Remote, head: Head, rename: str | None, workers: int) -> tuple[int, int, int, int]:
    """Fetch what is missing here; return the same as `_push`."""
    from kvcompress.store.adopt import adopt

    found = adopt(store, remote, head, rename or head.session, workers)
    return found.entries, found.segments, found.present, found.transferred_bytes
