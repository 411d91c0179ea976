"""A database that somebody changed: named or refused in one line, whatever stands in it, and nothing stays open."""

from __future__ import annotations

import os
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from kvcompress.errors import FormatError, IntegrityError, KVCompressError
from kvcompress.store.objects import LocalObjects, content_digest
from kvcompress.store.provenance import provenance
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.store.examples import snapshot_of

FIRST, SECOND = [5, 6, 7], [8, 9, 10]


@pytest.fixture
def session(store: Store) -> StoredSession:
    """Two sessions of equal lengths, one of another model, each with token ids alone at its end."""
    for name, ids, model in (("talk", FIRST, "a"), ("other", SECOND, "d")):
        made = store.session(name, create=True)
        made.append(snapshot_of(torch.tensor(ids), model), lossless=True)
        made.checkpoint("one")
        made.append_tokens(torch.tensor([*ids, 1, 2]))
        made.checkpoint("two")
    return store.session("talk")


def change(session: StoredSession, asked: str, *values: object) -> None:
    with closing(sqlite3.connect(session.store.database.path)) as tables, tables:
        tables.execute(asked, values)


WRONG = [
    ("sessions", "anchor", 1 << 40), ("sessions", "digest", "text"), ("sessions", "entries", -5),
    ("sessions", "entries", b"many"), ("sessions", "created", "soon"), ("sessions", "used", b"\x00"),
    ("entries", "anchor", 1 << 40), ("entries", "context", b"\xff"), ("entries", "context", "[1"),
    ("entries", "segment", 7), ("entries", "kind", b"append"), ("store", "generation", "x"),
    ("store", "settings", "{"), ("store", "settings", '{"max_bytes":"all"}'), ("store", "settings", "[]"),
    ("store", "settings", '{"floors":{"a":{"b":1}}}'), ("segments", "tokens", 1 << 40),
    ("segments", "parent", 1 << 40), ("segments", "prefix", "text"), ("entries", "parent", b"text"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "column", "value"), WRONG)
def test_a_value_of_another_type_is_refused(session: StoredSession, table: str, column: str, value: object) -> None:
    change(session, f"UPDATE {table} SET {column} = ?", value)
    store = session.store
    asked: list[Callable[[], object]] = [
        store.list, store.statistics, lambda: store.settings, lambda: list(session), session.token_ids,
        lambda: provenance(session), lambda: store.gc(grace_seconds=0), lambda: session.verify().ok or 1 / 0,
    ]  # fmt: skip
    refused = 0
    for ask in asked:
        try:
            ask()
        except (KVCompressError, ZeroDivisionError):
            refused += 1
    assert refused


def test_a_log_that_claims_entries_without_end_is_not_read_without_end(session: StoredSession) -> None:
    change(session, "UPDATE sessions SET entries = ?", 1 << 31)
    for newest_first in (False, True):
        with pytest.raises(IntegrityError, match="lacks entries"):
            list(session.entries(newest_first=newest_first))


def test_a_session_whose_row_has_gone_is_refused(session: StoredSession) -> None:
    """As where the index by name leads to a row that the table does not hold."""
    change(session, "DELETE FROM sessions WHERE id = 1")
    for ask in (session.verify, session.names, lambda: len(session), session.checkpoint, lambda: session.branch("b")):
        try:
            assert ask() == {"one": 1, "two": 3}
        except KVCompressError:
            continue


def test_a_database_without_its_own_row_is_refused(session: StoredSession) -> None:
    change(session, "DELETE FROM store")
    with pytest.raises(IntegrityError):
        session.store.statistics()
    with pytest.raises(IntegrityError):
        Store(session.store.path)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("UPDATE names SET number = 3 WHERE name = 'one'", "'one' was changed: the log gives it to entry 1"),
        ("DELETE FROM names WHERE name = 'two'", "'two' was changed: the log gives it to entry 3, it is missing"),
        ("INSERT INTO names VALUES (1, 'three', 0)", "'three' was changed: the log takes it away"),
    ],
)
def test_a_name_that_leads_elsewhere_than_the_log_says_is_told(session: StoredSession, asked: str, told: str) -> None:
    change(session, asked)
    verdict = session.verify(segments=False)
    assert verdict.kind == "name"
    assert told in verdict.what


@pytest.mark.parametrize("origin", [None, "other"])
def test_an_origin_of_another_model_is_told(session: StoredSession, origin: str | None) -> None:
    change(session, "UPDATE sessions SET origin = (SELECT origin FROM sessions WHERE name = ?) WHERE id = 1", origin)
    verdict = session.verify(segments=False)
    assert (verdict.kind, verdict.bad) == ("origin", 0)


def test_other_tokens_in_the_place_of_a_segment_are_told(session: StoredSession) -> None:
    """Both sessions have tokens 3 to 5 as ids alone; one's are said to stand for the other's."""
    other = session.store.session("other")
    mine, theirs = (bytes.fromhex(one.turns()[-1].segment) for one in (session, other))
    change(session, "UPDATE segments SET tokens = ? WHERE digest = ?", theirs, mine)
    verdict = session.verify()
    assert (verdict.kind, verdict.bad) == ("segment", 2)


def test_an_entry_that_does_not_continue_the_chain_has_no_provenance(session: StoredSession) -> None:
    change(session, "UPDATE entries SET context = replace(context, 'kvcompress', 'somebody') WHERE id % 4294967296 = 0")
    with pytest.raises(IntegrityError, match="does not continue the chain"):
        provenance(session, 0)


def test_an_id_beyond_what_a_table_can_hold_is_refused(session: StoredSession) -> None:
    change(session, "UPDATE sessions SET id = ? WHERE name = 'talk'", 1 << 61)
    with pytest.raises(FormatError, match="damaged"):
        session.store.session("talk").verify()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not told here")
def test_a_store_that_is_refused_lets_go_of_its_database(session: StoredSession) -> None:
    store = session.store
    change(session, "UPDATE store SET settings = '{'")
    store.close()
    with pytest.raises(FormatError) as refused:
        Store(store.path)
    opened = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.exists()]
    assert refused.value.what
    assert not [name for name in opened if name.startswith(str(store.path))]


def test_an_error_that_is_kept_does_not_keep_the_log_busy(session: StoredSession) -> None:
    change(session, "UPDATE entries SET anchor = 5 WHERE id % 4294967296 = 1")
    with pytest.raises(IntegrityError) as refused:
        list(session)
    connection = session.store.database.connection
    connection.execute("PRAGMA busy_timeout = 0")
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert refused.value.what


def test_an_address_that_is_none_is_refused(session: StoredSession) -> None:
    change(session, "UPDATE store SET settings = ?", '{"segments":"no-such-kind://x"}')
    with pytest.raises(KVCompressError, match="cannot be used"):
        Store(session.store.path)
    change(session, "UPDATE store SET settings = ?", '{"segments":"/dev/null"}')
    with Store(session.store.path) as store, pytest.raises(KVCompressError):
        store.session("talk").token_ids()


def test_a_segment_takes_the_memory_of_its_size(tmp_path: Path) -> None:
    objects, data = LocalObjects(tmp_path), b"abc"
    digest = content_digest(data)
    objects.put(digest, data)
    tracemalloc.start()
    try:
        assert objects.get(digest) == data
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
