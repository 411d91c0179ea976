"""The chain of anchors: what it is of, and what a check of it tells."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcompress.store import database
from kvcompress.store.database import entry_id
from kvcompress.store.log import Link
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

Change = Callable[[sqlite3.Connection], object]


@pytest.fixture
def session(store: Store) -> StoredSession:
    found, whole = store.session("talk", create=True), snapshot_of(ids_of(40))
    for tokens in (5, 9, 12, 20, 40):
        found.append(part_of(whole, 0, tokens), lossless=True)
    found.checkpoint("end")
    return found


def changed(session: StoredSession, change: Change) -> tuple[str, int | None]:
    """What a check tells after the tables were changed behind the store's back."""
    with sqlite3.connect(session.store.database.path) as tables:
        change(tables)
    verdict = session.verify()
    assert "\n" not in verdict.what
    return verdict.kind, verdict.bad


def place(session: StoredSession, number: int) -> int:
    return entry_id(session.id, number)


def test_an_anchor_is_of_the_one_before_the_segment_and_the_context(session: StoredSession) -> None:
    anchor, digest = bytes(8), bytes(32)
    for entry in session:
        context = json.dumps(entry.context, sort_keys=True, separators=(",", ":")).encode()
        for size in (8, 32):
            parts = (anchor if size == 8 else digest, bytes.fromhex(entry.segment), context)
            data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
            found = hashlib.blake2b(data, digest_size=size).digest()
            anchor, digest = (found, digest) if size == 8 else (anchor, found)
        assert (entry.anchor, entry.digest) == (anchor.hex(), digest.hex())


def test_parts_of_other_lengths_do_not_meet() -> None:
    assert Link().then(b"ab", b"c") != Link().then(b"a", b"bc")


def test_an_untouched_log_is_in_order(session: StoredSession) -> None:
    verdict = session.verify()
    assert verdict.ok
    assert (verdict.entries, verdict.link.anchor.hex()) == (6, session.store.list()[0].anchor)


@pytest.mark.parametrize("column", ["context", "segment", "anchor", "digest", "kind", "parent", "start", "end"])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_an_edit_is_told_with_its_entry(session: StoredSession, column: str, number: int) -> None:
    values = {"context": "{}", "kind": "tokens", "parent": 3, "start": 1, "end": 77}
    value = values.get(column, bytes(32))

    def edit(tables: sqlite3.Connection) -> object:
        return tables.execute(f"UPDATE entries SET {column} = ? WHERE id = ?", (value, place(session, number)))

    assert changed(session, edit) == ("edit", number)


def test_a_word_in_a_context_is_an_edit(session: StoredSession) -> None:
    def edit(tables: sqlite3.Connection) -> object:
        asked = "UPDATE entries SET context = replace(context, 'kvcompress', 'kvcompresS') WHERE id = ?"
        return tables.execute(asked, (place(session, 3),))

    assert changed(session, edit) == ("edit", 3)


def test_two_entries_that_changed_places_are_told_as_such(session: StoredSession) -> None:
    def swap(tables: sqlite3.Connection) -> None:
        for source, target in ((1, 90), (3, 1), (90, 3)):
            ids = (place(session, target), place(session, source))
            tables.execute("UPDATE entries SET id = ? WHERE id = ?", ids)

    assert changed(session, swap) == ("reorder", 1)


def test_a_removed_entry_is_told_with_its_number(session: StoredSession) -> None:
    def remove(tables: sqlite3.Connection) -> object:
        return tables.execute("DELETE FROM entries WHERE id = ?", (place(session, 2),))

    assert changed(session, remove) == ("removal", 2)


def test_a_removed_entry_whose_gap_was_closed_is_told_too(session: StoredSession) -> None:
    def remove(tables: sqlite3.Connection) -> None:
        tables.execute("DELETE FROM entries WHERE id = ?", (place(session, 2),))
        for number in range(3, 6):
            ids = (place(session, number - 1), place(session, number))
            tables.execute("UPDATE entries SET id = ? WHERE id = ?", ids)
        tables.execute("UPDATE sessions SET entries = 5")

    assert changed(session, remove) == ("removal", 2)


def test_a_log_that_was_cut_off_is_told_as_such(session: StoredSession) -> None:
    def cut(tables: sqlite3.Connection) -> object:
        return tables.execute("DELETE FROM entries WHERE id >= ?", (place(session, 4),))

    assert changed(session, cut) == ("truncation", 4)


def test_a_chain_that_was_written_anew_ends_elsewhere(session: StoredSession) -> None:
    def rewrite(tables: sqlite3.Connection) -> None:
        link = Link()
        for entry in session:
            text = json.dumps({**entry.context, "time": 0}, sort_keys=True, separators=(",", ":"))
            link = link.then(bytes.fromhex(entry.segment), text.encode())
            values = (text, link.anchor, link.digest, entry.id)
            tables.execute("UPDATE entries SET context = ?, anchor = ?, digest = ? WHERE id = ?", values)

    assert changed(session, rewrite) == ("edit", 5)


def test_a_segment_that_was_changed_or_lost_is_told_with_its_entry(session: StoredSession) -> None:
    store = session.store
    path = store.path / "segments" / session.entry(3).segment[:2] / session.entry(3).segment[2:]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (session.verify().kind, session.verify().bad) == ("segment", 3)
    assert session.verify(segments=False).ok
    path.unlink()
    assert (session.verify().kind, session.verify().bad) == ("segment", 3)
    path.write_bytes(whole)
    assert session.verify().ok


def test_what_is_no_store_is_refused_in_one_line(store: Store) -> None:
    from kvcompress.errors import KVCompressError

    path = store.database.path
    store.close()
    with sqlite3.connect(path) as tables:
        tables.execute("CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END")
    with pytest.raises(KVCompressError, match="a part that no store has: 't'"):
        Store(store.path)
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(KVCompressError) as failure:
        Store(store.path)
    assert "\n" not in str(failure.value)


def test_a_store_of_an_earlier_version_is_read_and_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages stay as large as they are, its tables are those of today from then on."""
    whole = snapshot_of(ids_of(40))
    with monkeypatch.context() as before:
        before.setattr(database, "MIGRATIONS", database.MIGRATIONS[:2])
        before.setattr(database, "PAGE_BYTES", 1024)
        with Store(place, create=True) as old:
            talk = old.session("talk", create=True)
            for tokens in (5, 9, 12):
                talk.append(part_of(whole, 0, tokens), lossless=True)
            segments = [entry.segment for entry in talk]
    with Store(place) as store:
        assert store.database.page_bytes == 1024
        talk = store.session("talk")
        assert [entry.segment for entry in talk] == segments
        talk.append(whole, lossless=True)
        other = store.session("other", create=True)
        other.append(part_of(whole, 0, 5), lossless=True)
        assert other.turns()[0].segment == segments[0]
        assert same(talk.snapshot(), whole)
        assert talk.verify().ok
        rows = store.database.connection.execute("SELECT digest, uses FROM segments ORDER BY rowid").fetchall()
        assert [bytes(row["digest"]).hex() for row in rows][:3] == segments
        assert [row["uses"] for row in rows] == [2, 1, 1, 1]
    with Store(place) as again:
        assert again.session("talk").tokens == 40
