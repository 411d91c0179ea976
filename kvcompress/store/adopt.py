"""A session from elsewhere comes into a store: whole, in one transaction, or not at all.

Its segments are fetched first, each looked at before it is kept: its digest, its place, its model, and that its tokens
are those whose digest the log states, for other sessions may come to share it. Those of an interrupted attempt are
there already and are not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvcompress.errors import FormatError, InputError, IntegrityError, MismatchError
from kvcompress.format.container import HASH_CHARACTERS
from kvcompress.format.origin import origin_of_json
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.appending import ENTRY_BYTES
from kvcompress.store.bundle import Head, Log, Row, Source, diverged, gather
from kvcompress.store.collect import require_room
from kvcompress.store.crypto import changed_key
from kvcompress.store.database import entry_id
from kvcompress.store.fence import claim
from kvcompress.store.log import CHECKPOINT, FORGET
from kvcompress.store.objects import checked, content_digest
from kvcompress.store.pieces import read_logs
from kvcompress.store.segment import PREFIX_BYTES, Part, read_part
from kvcompress.store.session import StoredSession
from kvcompress.store.store import new_session

if TYPE_CHECKING:
    from kvcompress.store.store import Store


@dataclass(frozen=True, slots=True)
class Adopted:
    """What has come.

    Attributes:
        session: Name of the session here.
        entries: Entries that are new here.
        segments: Segments that were fetched.
        present: Segments of these entries that were here already.
        transferred_bytes: Of the segments that were fetched.
    """

    session: str
    entries: int
    segments: int
    present: int
    transferred_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        return asdict(self)


def adopt(store: Store, source: Source, head: Head, name: str | None = None, workers: int = 1) -> Adopted:
    """Take a session into a store; where it is there already, go on along its log.

    Args:
        store: The store.
        source: Where its pieces and segments are.
        head: Its head.
        name: What to call it here; None keeps its name.
        workers: Segments that are fetched at a time.

    Raises:
        InputError: The session here went on differently, another process writes to it, or there is no room.
        FormatError: What came is damaged or was tampered with.
    """
    name = head.session if name is None else name
    here = _here(store, name)
    known = gather(here)[-1] if here is not None else None
    logs = read_logs(source, head, lambda place: known if place == len(head.logs) - 1 else None)
    own, count = logs[-1], len(known.rows) if known is not None else 0
    shared = min(count, len(own.rows))
    if known is not None and shared and known.rows[shared - 1].link != own.rows[shared - 1].link:
        raise diverged(name, "the other end", shared)
    if here is not None and count >= len(own.rows):
        return Adopted(name, 0, 0, 0, 0)
    arrivals = _Arrivals(store, source, workers)
    taken = [len(log.rows) if count else 0 for log in logs[:-1]] + [count]  # what it branched from came with it
    cover, parts = store.cover, arrivals.fetch(logs, taken)
    with store.database.write() as tables:
        if store.cover is not cover:  # the files were encrypted with a key that another thread has exchanged
            raise changed_key()
        added = _Adoption(store, tables, parts).add(logs, here, name, count)
    return Adopted(name, added, arrivals.segments, arrivals.present, arrivals.transferred_bytes)


def _here(store: Store, name: str) -> StoredSession | None:
    with store.database.read() as tables:
        row = tables.execute("SELECT id FROM sessions WHERE name = ?", (store.cover.name(name),)).fetchone()
    return None if row is None else StoredSession(store, int(row["id"]), name)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A segment that is on the disk; `prefix` is the digest of all token ids up to its end."""

    held: str
    parent: str
    end: int
    prefix: bytes
    size_bytes: int


class _Arrivals:
    """Fetches the segments of new entries and looks at each.

    Args:
        store: Where they go.
        source: Where they come from.
        workers: How many at a time.
    """

    def __init__(self, store: Store, source: Source, workers: int) -> None:
        self.store, self.source, self.workers = store, source, workers
        self.segments = self.present = self.transferred_bytes = 0
        self._read: dict[str, Any] = {}

    def fetch(self, logs: Sequence[Log], taken: Sequence[int]) -> dict[str, Arrived]:
        """Return the segments of all entries but the first `taken` of each log, by their digests."""
        found: dict[str, Arrived] = {}
        before: dict[str, str] = {}
        wanted = list(self._wanted(logs, taken, before))
        limit = self.store.settings.get("max_bytes")
        for (row, parent, origin), data in zip(wanted, self._contents([row.held for row, _, _ in wanted]), strict=True):
            new = self.store.objects.size(row.held) is None
            if content_digest(data, self.store.digest_key) != row.held:
                raise IntegrityError(f"the segment {row.held[:16]} was changed on its way", "Fetch it again")
            part = read_part(data)
            prefix = self._checked(row, parent, part, origin)
            if new:
                if limit is not None:
                    require_room(self.store, len(data) + ENTRY_BYTES, int(limit))
                self.store.written(self.store.objects.put(row.held, data))
                self.segments, self.transferred_bytes = self.segments + 1, self.transferred_bytes + len(data)
            else:
                self.present += 1
            size = self.store.objects.size(row.held) or len(data)
            found[row.segment] = Arrived(row.held, parent, part.end, prefix, size)
        return found

    def _wanted(
        self, logs: Sequence[Log], taken: Sequence[int], before: dict[str, str]
    ) -> Iterator[tuple[Row, str, Mapping[str, Any]]]:
        """Yield the entries whose segments are wanted, each with the segment before and the origin of its session."""
        seen: set[str] = set()
        for place, log in enumerate(logs):
            for number, row in enumerate(log.rows):
                parent = row.says["parent"]
                key = log.rows[parent].link.digest.hex() if isinstance(parent, int) else parent
                previous = "" if key is None else before[key]
                before[row.link.digest.hex()] = row.segment or previous
                if not row.held or number < taken[place] or row.segment in seen:
                    continue
                if log.origin is None:
                    raise FormatError("a log with segments names no origin")
                seen.add(row.segment)
                yield row, previous, log.origin

    def _contents(self, digests: Sequence[str]) -> Iterator[bytes]:
        """Yield what files hold, those that lie here from here; the next ones are fetched meanwhile."""
        if self.workers <= 1:
            yield from map(self._content, digests)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            coming: deque[Future[bytes]] = deque()
            try:
                for digest in digests:
                    coming.append(pool.submit(self._content, digest))
                    if len(coming) >= self.workers:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                for one in coming:
                    one.cancel()

    def _content(self, digest: str) -> bytes:
        """Return a file from here where it is whole, from there otherwise."""
        if self.store.objects.size(digest) is not None:
            with suppress(FormatError):  # damaged, or of a key that was given up
                return checked(self.store.objects, digest, key=self.store.digest_key)
            self.store.objects.delete(digest)
        return self.source.segment(digest)

    def _checked(self, row: Row, parent: str, part: Part, origin: Mapping[str, Any]) -> bytes:
        """Return the digest of all ids up to a segment's end, if the segment is what its entry says."""
        if (part.start, part.end) != row.span or part.parent != parent:
            raise FormatError(f"the segment {row.segment[:16]} is one of another place")
        if row.held != row.segment and not part.is_tokens_only:
            raise FormatError(f"what stands for the segment {row.segment[:16]} is not its token ids")
        stated = asdict(origin_of_json(origin).fingerprint)
        for name, digest in stated.items():
            expected, found = (digest or "")[:HASH_CHARACTERS], part.encoded.model.get(name) or ""
            if expected != found:
                raise MismatchError(f"a segment's {name}", expected, found, "Do not use it")
        hashed = self._before(parent)
        hashed.update(part.token_ids.numpy().astype("<i8").tobytes())
        self._read[row.segment] = hashed
        if hashed.hexdigest() != row.says["prefix"]:
            raise FormatError(f"the segment {row.segment[:16]} holds other tokens than its entry states")
        return bytes.fromhex(row.says["prefix"])

    def _before(self, segment: str) -> Any:
        """Return the running digest of all ids up to the end of a segment, which is read where it lies here already."""
        way: list[Part] = []
        while segment and segment not in self._read:
            way.append(self.store.part(segment))
            segment = way[-1].parent
        hashed = (
            self._read[segment].copy()
            if segment
            else hashlib.blake2b(digest_size=PREFIX_BYTES, key=self.store.digest_key)
        )
        for part in reversed(way):
            hashed.update(part.token_ids.numpy().astype("<i8").tobytes())
        return hashed


class _Adoption:
    """Adds rows within one transaction."""

    def __init__(self, store: Store, tables: sqlite3.Connection, parts: Mapping[str, Arrived]) -> None:
        self.store, self.tables, self.parts = store, tables, parts
        self.ids: dict[str, int] = {}
        self.now = time.time()

    def add(self, logs: Sequence[Log], here: StoredSession | None, name: str, count: int) -> int:
        """Add logs, the own one last; return how many entries of it are new."""
        for log in logs[:-1]:
            self._ancestor(log)
        own = logs[-1]
        if here is None:
            here = StoredSession(self.store, new_session(self.tables, name), name)
            self.tables.execute("UPDATE sessions SET created = ? WHERE id = ?", (own.created, here.id))
        claim(self.tables, here, count)
        self._rows(here.id, own, count)
        self._names(here.id, own)
        return len(own.rows) - count

    def _ancestor(self, log: Log) -> None:
        """Add a log that a branch goes on from, without a name, unless one here holds its entries already."""
        last = log.rows[-1].link.digest if log.rows else b""
        row = self.tables.execute("SELECT id FROM entries WHERE digest = ?", (last,)).fetchone()
        if row is None:
            start = bytes(8), bytes(32)
            asked = (
                "INSERT INTO sessions (name, created, used, entries, anchor, digest, fence) "
                "VALUES (NULL, ?, ?, 0, ?, ?, 0)"
            )
            session = int(self.tables.execute(asked, (log.created, self.now, *start)).lastrowid or 0)
            self._rows(session, log, 0)
            return
        first = int(row["id"]) - (len(log.rows) - 1)
        for number, one in enumerate(log.rows):
            self.ids[one.link.digest.hex()] = first + number
            lost = "SELECT 1 FROM entries WHERE id = ? AND held = 0"
            if one.segment in self.parts and self.tables.execute(lost, (first + number,)).fetchone():
                self._hold(one)
                self.tables.execute("UPDATE entries SET held = 1 WHERE id = ?", (first + number,))

    def _rows(self, session: int, log: Log, count: int) -> None:
        for number, row in enumerate(log.rows):
            place = entry_id(session, number)
            self.ids[row.link.digest.hex()] = place
            if number < count:
                continue
            parent = row.says["parent"]
            parent_id = entry_id(session, parent) if isinstance(parent, int) else self.ids[parent] if parent else None
            held = row.segment in self.parts and self._hold(row)
            values = (place, parent_id, row.says["kind"], *row.span, bytes.fromhex(row.segment) or None)
            link = (self.store.cover.text(row.context), row.link.anchor, row.link.digest, int(held))
            self.tables.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, *link))
        if len(log.rows) > count:
            link_now = log.rows[-1].link
            asked = "UPDATE sessions SET entries = ?, anchor = ?, digest = ?, used = ? WHERE id = ?"
            self.tables.execute(asked, (len(log.rows), link_now.anchor, link_now.digest, self.now, session))
        if log.origin is not None:
            self._origin(session, log.origin)

    def _origin(self, session: int, origin: Mapping[str, Any]) -> None:
        text = canonical_json(dict(origin) | {"next_position": 0})
        digest = content_digest(text, self.store.digest_key)
        row = self.tables.execute("SELECT origin FROM sessions WHERE id = ?", (session,)).fetchone()
        if row["origin"] not in (None, digest):
            known = self.tables.execute("SELECT origin FROM origins WHERE digest = ?", (row["origin"],)).fetchone()
            stated = json.loads(known["origin"])["fingerprint"] if known else None
            raise MismatchError("the session's origin", str(stated)[:80], str(origin.get("fingerprint"))[:80])
        self.tables.execute("INSERT OR IGNORE INTO origins VALUES (?, ?)", (digest, self.store.cover.text(text)))
        self.tables.execute("UPDATE sessions SET origin = ? WHERE id = ?", (digest, session))

    def _names(self, session: int, log: Log) -> None:
        """Give the names that the log gives, in its order."""
        names = dict[str, int]()
        for number, row in enumerate(log.rows):
            name = row.says.get("name", "")
            if name and row.says["kind"] == CHECKPOINT:
                names[name] = number
            elif row.says["kind"] == FORGET:
                names.pop(name, None)
        self.tables.execute("DELETE FROM names WHERE session = ?", (session,))
        rows = [(session, self.store.cover.name(name, session), number) for name, number in names.items()]
        self.tables.executemany("INSERT INTO names VALUES (?, ?, ?)", rows)

    def _hold(self, row: Row) -> bool:
        """Count one more entry that holds a segment."""
        digest, part = bytes.fromhex(row.segment), self.parts[row.segment]
        found = self.tables.execute("SELECT 1 FROM segments WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            if self.store.objects.size(part.held) is None:
                raise InputError("a segment was collected while the session came in", "Try again")
            if part.held == row.segment:
                self._segment(digest, part, part.size_bytes, None)
            else:
                stand_in = bytes.fromhex(part.held)
                if self.tables.execute("SELECT 1 FROM segments WHERE digest = ?", (stand_in,)).fetchone() is None:
                    self._segment(stand_in, part, part.size_bytes, None)
                self.tables.execute("UPDATE segments SET uses = uses + 1 WHERE digest = ?", (stand_in,))
                self._segment(digest, part, 0, stand_in)
        asked = "UPDATE segments SET uses = uses + 1, used = ? WHERE digest = ?"
        self.tables.execute(asked, (self.now, digest))
        return True

    def _segment(self, digest: bytes, part: Arrived, size_bytes: int, tokens: bytes | None) -> None:
        values = (digest, bytes.fromhex(part.parent), part.end, part.prefix, size_bytes, 0, self.now, self.now, tokens)
        self.tables.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        asked = "UPDATE store SET stored_bytes = stored_bytes + ?, added_bytes = added_bytes + ?"
        self.tables.execute(asked, (size_bytes, size_bytes))
