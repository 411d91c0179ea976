"""The tables: which SQLite they need, and that nobody commits while the write-ahead log is copied back."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from kvcompress.errors import FormatError, InputError, WrongKeyError
from kvcompress.store import database
from kvcompress.store.database import Database
from kvcompress.store.keys import StoreKey
from kvcompress.store.store import Store


def log_bytes(store: Store) -> int:
    path = Path(f"{store.database.path}-wal")
    return path.stat().st_size if path.exists() else 0


def stranger(store: Store) -> sqlite3.Connection:
    """A connection of somebody else, who does not wait."""
    return sqlite3.connect(store.database.path, timeout=0, isolation_level=None)


@pytest.mark.parametrize("version", [(3, 7, 17), (3, 32, 3)])
def test_a_sqlite_that_is_too_old_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, version)))
    with pytest.raises(
        InputError, match=rf"needs SQLite 3\.33\.0 or later, and this Python has {version[0]}"
    ) as failure:
        Store(tmp_path / "store", create=True)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "store" / "store.db").exists()


def test_nobody_commits_while_the_log_is_copied_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "GUARD_SECONDS", 0.01)
    store.session("talk", create=True)
    tried = []

    def watch(statement: str) -> None:
        if "wal_checkpoint(PASSIVE)" in statement:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                stranger(store).execute("BEGIN IMMEDIATE")
            tried.append(statement)

    store.database.connection.set_trace_callback(watch)
    store.database.checkpoint()
    store.database.checkpoint(shrink=True)
    store.database.connection.set_trace_callback(None)
    assert len(tried) == 2
    assert log_bytes(store) == 0
    stranger(store).execute("BEGIN IMMEDIATE").execute("ROLLBACK")  # the lock is free again


def test_while_somebody_writes_the_log_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "GUARD_SECONDS", 0.01)
    store.session("talk", create=True)
    before, other = log_bytes(store), stranger(store)
    other.execute("BEGIN IMMEDIATE")
    store.database.checkpoint(shrink=True)
    assert log_bytes(store) == before > 0
    other.execute("ROLLBACK")
    store.database.checkpoint(shrink=True)
    assert log_bytes(store) == 0


def test_no_connection_of_ours_copies_back_by_itself(store: Store) -> None:
    assert store.database.connection.execute("PRAGMA wal_autocheckpoint").fetchone()[0] == 0


def test_a_store_that_cannot_be_made_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half made it would be a store without its bound, or without its key."""
    place = tmp_path / "store"

    def full(database: Database, key: StoreKey | None, *, create: bool) -> None:
        raise InputError("disk is full", "Free some space", path=database.path)

    monkeypatch.setattr("kvcompress.store.create.protect", full)
    with pytest.raises(InputError, match=rf"^{re.escape(str(place / 'store.db'))}: disk is full"):
        Store(place, create=True, max_bytes=10**6, key=StoreKey.from_passphrase("secret"))
    with pytest.raises(InputError, match="no order of eviction"):
        Store(place, create=True, evict="luck")
    assert list(place.iterdir()) == []
    monkeypatch.undo()
    with Store(place, create=True, key=StoreKey.from_passphrase("secret")):
        pass
    with pytest.raises(WrongKeyError, match="encrypted"):
        Store(place)


@pytest.mark.parametrize("version", [-1, -5, 99])
def test_a_version_that_there_is_not_is_refused(tmp_path: Path, version: int) -> None:
    with Store(tmp_path / "store", create=True) as store, stranger(store) as other:
        other.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(FormatError, match=f"version {version}"):
        Store(tmp_path / "store")


def test_a_database_that_is_none_of_a_store_gets_no_tables(tmp_path: Path) -> None:
    foreign = sqlite3.connect(tmp_path / "store.db")
    foreign.execute("CREATE TABLE mine (a)")
    with pytest.raises(FormatError, match="none of a store"):
        Store(tmp_path)
    assert foreign.execute("SELECT name FROM sqlite_schema").fetchall() == [("mine",)]
    foreign.close()
