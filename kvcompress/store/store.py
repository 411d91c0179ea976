"""A store: a folder of sessions, their logs in SQLite, their segments in files beside.

```
DIR/store.db              logs, names, references, locks
DIR/segments/ab/cdef...   what the entries point at, or at the fsspec address that the store was made with
```
An entry is acknowledged once its segment and then its row are on the disk. A segment without a row is a left-over of an
interrupted write, and `gc` sweeps it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvcompress.errors import InputError, IntegrityError, KVCompressError
from kvcompress.store.columns import only_row
from kvcompress.store.cover import PLAIN, Cover, cover_of
from kvcompress.store.create import create_store
from kvcompress.store.database import Database
from kvcompress.store.figures import SessionInfo, Statistics
from kvcompress.store.keyring import protect, protected
from kvcompress.store.log import Link
from kvcompress.store.objects import LocalObjects, Objects, RemoteObjects, checked, content_digest
from kvcompress.store.settings import USE, keep, limit, settings_of
from kvcompress.store.writer import retire, this_writer

if TYPE_CHECKING:
    from kvcompress.api.codecs import LoadedCodecs
    from kvcompress.snapshot import Origin
    from kvcompress.store.collect import Collected
    from kvcompress.store.keys import StoreKey
    from kvcompress.store.policy import Policy
    from kvcompress.store.segment import Part
    from kvcompress.store.session import StoredSession
    from kvcompress.store.signing import Signer

DATABASE, SEGMENTS = "store.db", "segments"
LONGEST_NAME = 200
GRACE_SECONDS = 3600.0
"""Files younger than this may belong to an entry that is about to be written."""


class Store:
    """A store of sessions; several processes and threads may have it open.

    Args:
        path: Its folder.
        create: Make it where it is missing.
        codec: Name, directory or Hub id of the codec to be taken; None takes those at hand that fit.
        segments: With `create`, an fsspec address where segments are to lie; None puts them into the folder.
        max_bytes: With `create`, a bound on what the store takes on the disk; `set_limit` changes it.
        evict: With a bound, what goes first: "use" (what was not used for longest) or "age" (the oldest).
        key: Of an encrypted store; with `create` a new one is encrypted.
        policy: What is to be trusted; the rest is refused before it is decoded. None trusts all.
        signer: Signs every entry that is added.

    Attributes:
        objects: Where the segments lie.
        cover: What covers the database.
        writer: What tells this store's owner from other writers.

    Raises:
        InputError: There is no store, or it cannot be made; `WrongKeyError` where the key is another one.
        FormatError: It is damaged, or of a later version; `IntegrityError` where its keyring was changed.
    """

    objects: Objects

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = False,
        codec: str | Path | None = None,
        segments: str | None = None,
        max_bytes: int | None = None,
        evict: str = USE,
        key: StoreKey | None = None,
        policy: Policy | None = None,
        signer: Signer | None = None,
    ) -> None:
        self.path = Path(path)
        if create and not (self.path / DATABASE).is_file():
            settings = limit(max_bytes, evict) | ({} if segments is None else {"segments": segments})
            create_store(self.path / DATABASE, settings, key)
        self.database = Database(self.path / DATABASE)
        self.codec, self.writer, self.policy, self.signer = codec, this_writer(), policy, signer
        self._locks: dict[int, threading.RLock] = {}
        self._guard = threading.Lock()
        self.cover: Cover = PLAIN
        try:
            self._open(key, create)
        except BaseException:  # a connection that nobody can close would stand in the way of the next one
            self.database.close()
            raise

    def _open(self, key: StoreKey | None, create: bool) -> None:
        self.cover = protect(self.database, key, create=create)
        address = self.settings.get("segments")
        lies = LocalObjects(self.path / SEGMENTS) if address is None else RemoteObjects(str(address))
        self.objects = protected(lies, self.cover)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def close(self) -> None:
        """Let other processes write to the sessions of this one, and close the database."""
        mine = json.dumps(self.writer)
        with suppress(KVCompressError):  # a full disk; the next writer sees that this one has gone
            with self.database.read() as tables:
                held = tables.execute("SELECT 1 FROM sessions WHERE writer = ?", (mine,)).fetchone()
            if held:
                with self.database.write() as tables:
                    tables.execute("UPDATE sessions SET writer = NULL WHERE writer = ?", (mine,))
        retire(self.writer)
        self.database.close()

    @property
    def digest_key(self) -> bytes:
        """Key of the digests of contents and token ids; empty where nothing is encrypted."""
        return self.cover.digest_key

    @cached_property
    def codecs(self) -> LoadedCodecs:
        """Codecs in use, loaded once."""
        from kvcompress.api.codecs import LoadedCodecs

        return LoadedCodecs(self.codec)

    # -- settings and figures

    @property
    def settings(self) -> dict[str, Any]:
        """What the store was told: max_bytes, evict, segments."""
        with self.database.read() as tables:
            return settings_of(tables)

    def set_limit(self, max_bytes: int | None, *, evict: str = USE) -> None:
        """Bound what the store takes on the disk; None lifts the bound. What is there already goes with the next `gc`.

        Raises:
            InputError: The bound is not positive, or the order unknown.
        """
        keep(self.database, limit(max_bytes, evict))

    @property
    def generation(self) -> int:
        """A number that every change raises."""
        with self.database.read() as tables:
            return int(only_row(tables)["generation"])

    def statistics(self) -> Statistics:
        """Return what the store takes and has cost."""
        with self.database.read() as tables:
            row = only_row(tables)
            sessions = tables.execute("SELECT COUNT(*) FROM sessions WHERE name IS NOT NULL").fetchone()[0]
            segments = tables.execute("SELECT COUNT(*) FROM segments").fetchone()[0]
        pending = self.database.uncounted_bytes
        return Statistics(
            generation=row["generation"],
            sessions=sessions,
            segments=segments,
            stored_bytes=row["stored_bytes"],
            database_bytes=self.database.size_bytes(),
            added_bytes=row["added_bytes"],
            written_bytes=row["written_bytes"] + pending,
        )

    # -- sessions

    def list(self) -> list[SessionInfo]:
        """Return the sessions by name."""
        asked = (
            "SELECT name, entries, created, used, anchor, "
            "COALESCE((SELECT end FROM entries WHERE entries.id = sessions.id * 4294967296 + sessions.entries - 1), 0) "
            "AS end "
            "FROM sessions WHERE name IS NOT NULL"
        )
        with self.database.read() as tables:
            found = [
                SessionInfo(
                    name=row["name"],
                    entries=row["entries"],
                    tokens=row["end"],
                    created=row["created"],
                    used=row["used"],
                    anchor=bytes(row["anchor"]).hex(),
                )
                for row in tables.execute(asked)
            ]
        return sorted(found, key=lambda info: info.name)

    def session(self, name: str, *, create: bool = False) -> StoredSession:
        """Return a session by name.

        Args:
            name: Its name.
            create: Make it where there is none.

        Raises:
            InputError: There is none, or the name cannot be one.
        """
        from kvcompress.store.session import StoredSession

        with self.database.read() as tables:
            row = tables.execute("SELECT id FROM sessions WHERE name = ?", (self.cover.name(name),)).fetchone()
        if row is None and create:
            with self.database.write() as tables:
                return StoredSession(self, new_session(tables, name), name)
        if row is None:
            raise InputError(f"no session {name!r} in the store", "See `kvcompress store list`", path=self.path)
        return StoredSession(self, int(row["id"]), name)

    def remove(self, name: str) -> None:
        """Forget a session; its log stays as long as branches go on from it, its segments until the next `gc`.

        Raises:
            InputError: There is none, or another process writes to it.
        """
        session = self.session(name)
        with session.lock, self.database.write() as tables:
            session.claim(tables)
            tables.execute("DELETE FROM names WHERE session = ?", (session.id,))
            tables.execute("UPDATE sessions SET name = NULL, writer = NULL WHERE id = ?", (session.id,))

    def lock_of(self, session: int) -> AbstractContextManager[Any]:
        """Return the lock that threads of this store take before they write to a session."""
        with self._guard:
            return self._locks.setdefault(session, threading.RLock())

    # -- segments

    def put(self, data: bytes) -> tuple[str, int]:
        """Store a segment's bytes durably; return its digest and how many bytes were written."""
        digest = content_digest(data, self.digest_key)
        return digest, self.written(self.objects.put(digest, data))

    def written(self, count: int) -> int:
        """Count bytes that were written to the disk; return them."""
        self.database.written_bytes += count
        return count

    def part(self, digest: str) -> Part:
        """Return a segment by its digest, as token ids alone where it had to make room.

        Raises:
            InputError: It was collected.
            IntegrityError: It was changed.
        """
        from kvcompress.store.segment import read_part

        return read_part(self.segment_bytes(digest))

    def segment_bytes(self, digest: str) -> bytes:
        """Return the bytes of a segment; as `part`."""
        for _ in range(2):  # it may make room while it is being read
            with self.database.read() as tables:
                row = tables.execute(
                    "SELECT tokens FROM segments WHERE digest = ?", (bytes.fromhex(digest),)
                ).fetchone()
            if row is None:
                what = f"the segment {digest[:16]} is not in the store: it was collected once nothing led to it"
                raise InputError(what, "Resume at an entry that a name or the session's end leads to", path=self.path)
            held = bytes(row["tokens"]).hex() if row["tokens"] is not None else digest
            if self.objects.size(held) is not None:
                break
        return checked(self.objects, held, key=self.digest_key)

    def gc(self, *, grace_seconds: float = GRACE_SECONDS, keep_last: int | None = None) -> Collected:
        """Delete segments that nothing leads to and left-overs of interrupted writes; make room where there is a bound.

        Args:
            grace_seconds: What is younger stays.
            keep_last: Automatic checkpoints a session keeps beside its end and its names; None keeps all.
        """
        from kvcompress.store.collect import collect

        return collect(self, grace_seconds, keep_last)

    def origin(self, digest: str) -> Origin:
        """Return the origin that sessions refer to by a digest."""
        from kvcompress.snapshot import Origin

        with self.database.read() as tables:
            row = tables.execute("SELECT origin FROM origins WHERE digest = ?", (digest,)).fetchone()
        if row is None or row["origin"] is None:
            raise InputError("the session's origin is missing", "Restore the store from a copy", path=self.path)
        if content_digest(row["origin"].encode(), self.digest_key) != digest:
            raise IntegrityError("the session's origin was changed", "Restore the store from a copy", path=self.path)
        return Origin.from_json(json.loads(row["origin"]))

    def __iter__(self) -> Iterator[StoredSession]:
        for info in self.list():
            yield self.session(info.name)


def new_session(tables: sqlite3.Connection, name: str) -> int:
    """Make the row of a session and return its id, which is never used again.

    Raises:
        InputError: The name is taken, or cannot be one.
    """
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise InputError(f"{name[:40]!r} cannot be a name", f"Use 1 to {LONGEST_NAME} printable characters")
    covered = cover_of(tables).name(name)
    if tables.execute("SELECT 1 FROM sessions WHERE name = ?", (covered,)).fetchone():
        raise InputError(f"there is a session {name!r} already", "Choose another name")
    start, now = Link(), time.time()
    found = tables.execute(
        "INSERT INTO sessions (name, created, used, entries, anchor, digest, fence) VALUES (?, ?, ?, 0, ?, ?, 0)",
        (covered, now, now, start.anchor, start.digest),
    )
    return int(found.lastrowid or 0)
