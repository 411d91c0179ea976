"""The store's tables in SQLite: opened, migrated, and changed only in transactions that are on the disk when they end.

```
store      one row: generation, bytes stored, bytes written
origins    digest, origin                     what every snapshot of a session has in common, once
sessions   name, head, entries, writer        one row a session
entries    session * 2**32 + number, parent   the log: rows are added, never changed but for `held`
names      session, name, number              which checkpoint a name means
segments   digest, parent, end, bytes, uses   what the files are and how many entries hold each
keyring    epoch, ring                        of an encrypted store alone, its keys under the user's
```
The write-ahead log is flushed at every commit (`synchronous = FULL`), so what is acknowledged survives a power cut.
Pages are small: a commit touches a dozen of them, and each goes to the disk whole. For the same reason rows of segments
lie in the order in which they came: only the two indexes on digests, which are anywhere, touch pages far apart.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import clear_frames

from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.store.cover import PLAIN, Cover, Tables
from kvcompress.store.crypto import changed_key
from kvcompress.store.schema import MIGRATIONS

PAGE_BYTES = 512
"""Of databases that are made now; those of earlier versions keep theirs."""

_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24

CHECKPOINT_FRAMES = 8000
"""The write-ahead log is copied into the database once it has so many pages: pages changed often are copied once."""

LEAST_SQLITE = (3, 33, 0)
"""Older ones do not know `sqlite_schema`, or ignore `trusted_schema = OFF` in silence."""

BUSY_SECONDS = 60.0
GUARD_SECONDS = 1.0
"""How long a copying back waits for a writer; whoever commits next does it otherwise."""

APPLICATION_ID = 0x4B565A53
SESSION_SPAN = 1 << 32
"""Entries of a session have the ids session * SESSION_SPAN + number."""

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "Another process is busy with it for long; try again",
    sqlite3.SQLITE_FULL: "Free some space or raise the limit; nothing of this change was kept",
    sqlite3.SQLITE_READONLY: "Check the permissions",
    sqlite3.SQLITE_CANTOPEN: "Check the name and the permissions",
}


class Database:
    """The tables of one store.

    Connections are one a thread, and a forked process opens its own.

    Args:
        path: The file.
        create: Make it where it is missing.

    Attributes:
        written_bytes: What this process has written into the database and its log, in bytes, as far as its commits
            could be told from those of others at the same moment.
        page_bytes: Size of a page.

    Raises:
        InputError: It is missing, or cannot be opened.
        FormatError: It is no store, is damaged, or is of a later version.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        require_sqlite()
        if not create and not path.is_file():
            raise InputError("no store here", "Make one with `kvcompress store init`", path=path.parent)
        self.written_bytes = self._counted = 0
        self._log = b"", 0
        self.cover = PLAIN
        self._reset()
        try:
            with self._translated():
                self._migrate()
                self.page_bytes = int(self.connection.execute("PRAGMA page_size").fetchone()[0])
        except BaseException:
            self.close()
            raise

    def _reset(self) -> None:
        self._process, self._local = os.getpid(), threading.local()
        self._open: list[Tables] = []
        self._guard = threading.Lock()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        if self._process != os.getpid():  # a connection must not be used, nor closed, on both sides of a fork
            self._reset()
        found: Tables | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._connect()
            self._local.connection = found
            with self._guard:
                self._open.append(found)
        return found

    def protect(self, cover: Cover) -> None:
        """Say what covers the values of the database."""
        with self._guard:
            self.cover = cover
            for connection in self._open:
                connection.protect(cover)

    def _connect(self) -> Tables:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=Tables
        )
        connection.protect(self.cover)
        for setting in (
            f"page_size = {PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "wal_autocheckpoint = 0",
        ):
            connection.execute(f"PRAGMA {setting}")
        return connection

    def close(self) -> None:
        """Close every connection of this process."""
        if self._process == os.getpid():
            with self._guard:
                for connection in self._open:
                    with suppress(sqlite3.Error):
                        connection.close()
            self._reset()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give the tables as they are now: nothing that others commit meanwhile is seen inside."""
        with self._translated():
            connection = self.connection
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                self._require_key()
                yield connection
            except BaseException as error:
                clear_frames(error.__traceback__)  # a query kept alive in there would keep the write-ahead log busy
                raise
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Give the tables to one writer; what it changed is on the disk when the block ends, or nothing of it is."""
        with self._translated():
            connection = self.connection
            if connection.in_transaction:
                raise RuntimeError("a transaction within a transaction")
            connection.execute("BEGIN IMMEDIATE")
            try:
                before = self._frames()
                self._require_key()
                yield connection
                connection.execute(
                    "UPDATE store SET generation = generation + 1, written_bytes = written_bytes + ?",
                    (self.written_bytes - self._counted,),
                )
                counted = self.written_bytes
                connection.execute("COMMIT")
            except BaseException as error:
                clear_frames(error.__traceback__)
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            self._counted = counted
            after = self._frames()
            self.written_bytes += self._frame_bytes * (after[1] - before[1] if after[0] == before[0] else after[1])
            if after[1] >= CHECKPOINT_FRAMES:
                self.checkpoint()

    def epoch(self) -> int:
        """Return the epoch of the keyring as this thread's transaction sees it, 0 where there is none."""
        row = self.connection.execute("SELECT epoch FROM keyring").fetchone()
        return 0 if row is None else int(row["epoch"])

    def _require_key(self) -> None:
        """Raise `WrongKeyError` where the store has another key than the one that we would read and write with."""
        if self.cover.encrypted and self.epoch() != self.cover.epoch:
            raise changed_key()

    def checkpoint(self, *, shrink: bool = False) -> None:
        """Copy the write-ahead log into the database; with `shrink` empty its file too, where nobody reads it."""
        with suppress(sqlite3.OperationalError):  # busy: whoever comes next does it
            before = self._frames()
            with self._no_commit():
                row = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if shrink:  # it takes the writers' lock itself
                emptied = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                row = row if emptied[2] <= 0 else emptied
            pages = self.connection.execute("PRAGMA page_count").fetchone()[0]
            self.written_bytes += self.page_bytes * min(max(row[2], before[1] if shrink else 0), pages)

    @contextmanager
    def _no_commit(self) -> Iterator[None]:
        """Hold the writers' lock.

        SQLite before 3.51.3 may lose a commit that begins the log anew while another connection copies it back
        (sqlite.org/wal.html#walresetbug), so nobody commits meanwhile. The lock needs a connection of its own, for
        none can copy back within its transaction.
        """
        guard = self._connect()
        try:
            guard.execute(f"PRAGMA busy_timeout = {int(1000 * GUARD_SECONDS)}")
            guard.execute("BEGIN IMMEDIATE")
            yield
            guard.execute("ROLLBACK")
        finally:
            guard.close()

    def rewrite(self) -> None:
        """Write the whole database anew, so that nothing is left in it of values that were replaced."""
        with self._translated():
            self.connection.execute("VACUUM")
        self.written_bytes += self.size_bytes()
        self.checkpoint(shrink=True)

    def size_bytes(self) -> int:
        """Return what the database and its log take on the disk."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    @property
    def uncounted_bytes(self) -> int:
        """What this process has written since its last commit counted it."""
        return self.written_bytes - self._counted

    @property
    def _frame_bytes(self) -> int:
        """What a page takes in the write-ahead log, its header included."""
        return self.page_bytes + _FRAME_HEADER_BYTES

    def _frames(self) -> tuple[bytes, int]:
        """Return the salt of the write-ahead log and how many pages carry it (sqlite.org/walformat.html).

        The log alone is opened here. SQLite's locks lie on the database and on its index, and closing any handle of a
        file lets go of all locks that a process has on it.
        """
        try:
            with open(f"{self.path}-wal", "rb") as log:
                salt = log.read(_LOG_HEADER_BYTES)[16:24]
                count = self._log[1] if salt == self._log[0] else 0
                while len(salt) == 8:
                    log.seek(_LOG_HEADER_BYTES + count * self._frame_bytes)
                    if log.read(_FRAME_HEADER_BYTES)[8:16] != salt:
                        break
                    count += 1
        except OSError:
            return b"", 0
        self._log = salt, count
        return self._log

    def _migrate(self) -> None:
        connection = self.connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= len(MIGRATIONS):
            raise FormatError(f"the store's tables have version {version}", "Upgrade kvcompress", path=self.path)
        if version or connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None:
            self._require_schema()  # before anything is changed in a database that is none of ours
        if version < len(MIGRATIONS):
            connection.execute("BEGIN IMMEDIATE")
            try:
                for number in range(connection.execute("PRAGMA user_version").fetchone()[0], len(MIGRATIONS)):
                    for statement in MIGRATIONS[number].split(";\n"):
                        connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            self._require_schema()

    def _require_schema(self) -> None:
        """Refuse a file that has other tables, views or triggers than ours: they could do anything."""
        if self.connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise FormatError("the database is none of a store", "Name the folder of a store", path=self.path)
        statements = {text.strip() for script in MIGRATIONS for text in script.split(";\n")}
        for row in self.connection.execute("SELECT name, sql FROM sqlite_schema"):
            if row["sql"] is not None and row["sql"] not in statements:
                what = f"the database has a part that no store has: {str(row['name'])[:40]!r}"
                raise FormatError(what, "Do not use it", path=self.path)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:  # a damaged schema quoted, an id too large
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            raise _refused(error, code, self.path) from error


def _refused(error: Exception, code: int, path: Path) -> KVCompressError:
    if not isinstance(error, sqlite3.Error) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return FormatError(f"the database is damaged ({error})", "Restore the store from a copy", path=path)
    what = f"the database cannot be used ({error})"
    return InputError(what, _REMEDIES.get(code, "Check disk and permissions"), path=path)


def require_sqlite() -> None:
    """Raise `InputError` where Python's SQLite is too old for the store."""
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        least = ".".join(map(str, LEAST_SQLITE))
        what = f"the store needs SQLite {least} or later, and this Python has {sqlite3.sqlite_version}"
        raise InputError(what, "Use a Python that is built with a later one")


def entry_id(session: int, number: int) -> int:
    """Return the id of an entry."""
    return session * SESSION_SPAN + number
