"""A check of a log compares all that reading goes by, of turns whose token ids alone are stored as of any other."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from kvcompress.format.strict_json import canonical_json
from kvcompress.store.database import entry_id
from kvcompress.store.log import Link
from kvcompress.store.segment import part_of, prefix_digest, tokens_part
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.store.examples import ids_of, origin, snapshot_of
from tests.store.test_log import changed, place

WHOLE = snapshot_of(ids_of(40))


@pytest.fixture
def session(store: Store) -> StoredSession:
    """Turns of token ids alone between others, and a name."""
    found = store.session("talk", create=True)
    found.append(part_of(WHOLE, 0, 5), lossless=True)
    for tokens in (9, 12, 20):
        found.append_tokens(WHOLE.token_ids[:tokens])
    found.append(WHOLE, lossless=True)
    found.checkpoint("end")
    assert [entry.kind for entry in found] == ["append", "tokens", "tokens", "tokens", "append", "checkpoint"]
    assert found.verify().ok
    return found


def rewrite(session: StoredSession, number: int, **said: object) -> Callable[[sqlite3.Connection], None]:
    """Change a context and make the chain anew from there, as somebody who can compute a hash would."""

    def change(tables: sqlite3.Connection) -> None:
        link = Link()
        for entry in session:
            text = canonical_json({**entry.context, **(said if entry.number == number else {})})
            link = link.then(bytes.fromhex(entry.segment), text)
            values = (text.decode(), link.anchor, link.digest, entry.id)
            tables.execute("UPDATE entries SET context = ?, anchor = ?, digest = ? WHERE id = ?", values)
        tables.execute("UPDATE sessions SET anchor = ?, digest = ?", (link.anchor, link.digest))

    return change


# -- token ids alone


@pytest.mark.parametrize("field", ["prefix", "after", "codec", "bytes", "why"])
def test_an_edit_of_what_such_a_turn_says_is_told(session: StoredSession, field: str) -> None:
    value = str(session.entry(2).context[field])

    def edit(tables: sqlite3.Connection) -> object:
        asked = "UPDATE entries SET context = replace(context, ?, ?) WHERE id = ?"
        other = ("1" if value[0] != "1" else "2") + value[1:]
        return tables.execute(asked, (value, other, place(session, 2)))

    assert changed(session, edit) == ("edit", 2)


@pytest.mark.parametrize("column", ["kind", "parent", "start", "end", "segment"])
def test_an_edit_of_its_columns_is_told(session: StoredSession, column: str) -> None:
    value = {"kind": "append", "parent": 0, "start": 1, "end": 77, "segment": bytes(32)}[column]

    def edit(tables: sqlite3.Connection) -> object:
        return tables.execute(f"UPDATE entries SET {column} = ? WHERE id = ?", (value, place(session, 2)))

    assert changed(session, edit) == ("edit", 2)


def test_such_turns_that_changed_places_were_removed_or_cut_off_are_told(session: StoredSession) -> None:
    def swap(tables: sqlite3.Connection) -> None:
        for source, target in ((1, 90), (3, 1), (90, 3)):
            ids = (place(session, target), place(session, source))
            tables.execute("UPDATE entries SET id = ? WHERE id = ?", ids)

    assert changed(session, swap) == ("reorder", 1)
    assert changed(session, swap) == ("", None)  # and back

    def remove(tables: sqlite3.Connection) -> object:
        return tables.execute("DELETE FROM entries WHERE id = ?", (place(session, 2),))

    assert changed(session, remove) == ("removal", 2)

    def cut(tables: sqlite3.Connection) -> object:
        return tables.execute("DELETE FROM entries WHERE id >= ?", (place(session, 2),))

    assert changed(session, cut) == ("truncation", 2)


def test_a_log_that_ends_with_such_turns_is_cut_off(session: StoredSession) -> None:
    session.rewind(3)
    session.append_tokens(ids_of(40)[:30])
    number = len(session) - 1

    def cut(tables: sqlite3.Connection) -> object:
        return tables.execute("DELETE FROM entries WHERE id >= ?", (place(session, number),))

    assert changed(session, cut) == ("truncation", number)


def test_its_file_is_checked_like_any_other(session: StoredSession) -> None:
    segment = session.entry(2).segment
    path = session.store.path / "segments" / segment[:2] / segment[2:]
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(data)
        assert (session.verify().kind, session.verify().bad) == ("segment", 2)
    path.write_bytes(whole)
    assert session.verify().ok
    path.unlink()
    assert (session.verify().kind, session.verify().bad) == ("segment", 2)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_tokens_that_a_turn_only_claims_are_told_though_the_chain_holds(session: StoredSession, number: int) -> None:
    lie = prefix_digest(ids_of(12, seed=7)).hex()
    assert changed(session, rewrite(session, number, prefix=lie)) == ("segment", number)
    assert session.verify(segments=False).ok
    assert "other tokens than the entry states" in session.verify().what


@pytest.mark.parametrize(("said", "kind"), [({"after": "ab" * 32}, "segment"), ({"model": "ab" * 32}, "origin")])
def test_so_is_what_it_claims_beside(session: StoredSession, said: dict[str, str], kind: str) -> None:
    assert changed(session, rewrite(session, 2, **said)) == (kind, 2)


def test_a_stand_in_of_other_tokens_is_told(store: Store) -> None:
    from kvcompress.store.collect import _leave_tokens

    session = store.session("wide", create=True)
    for tokens in (20, 40):
        session.append(part_of(snapshot_of(ids_of(40), size=64), 0, tokens), lossless=True)
    assert _leave_tokens(store, bytes.fromhex(session.entry(1).segment))
    assert session.verify().ok
    other = ids_of(40, seed=5)
    digest, _ = store.put(tokens_part(other, 20, session.entry(0).segment, origin(40)))
    assert changed(session, pointing(session, digest)) == ("segment", 1)
    right, _ = store.put(tokens_part(ids_of(40), 20, session.entry(0).segment, origin(40, model="z")))
    assert changed(session, pointing(session, right)) == ("segment", 1)
    assert "another model" in session.verify().what


def pointing(session: StoredSession, digest: str) -> Callable[[sqlite3.Connection], object]:
    asked = "UPDATE segments SET tokens = ? WHERE digest = ?"
    return lambda tables: tables.execute(asked, (bytes.fromhex(digest), bytes.fromhex(session.entry(1).segment)))


# -- tables beside the chain


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segments SET prefix = zeroblob(16)",
        "UPDATE segments SET parent = zeroblob(32)",
        "UPDATE segments SET end = end + 1",
        "UPDATE segments SET uses = 0",
        "UPDATE entries SET held = 0",
        "DELETE FROM segments",
    ],
)
@pytest.mark.parametrize("number", [0, 2])
def test_what_a_table_says_of_a_segment_is_compared(session: StoredSession, change: str, number: int) -> None:
    column, value = ("id", place(session, number)) if "entries" in change else ("digest", session.entry(number).segment)
    key = bytes.fromhex(value) if isinstance(value, str) else value
    assert changed(session, lambda tables: tables.execute(f"{change} WHERE {column} = ?", (key,))) == (
        "segment",
        number,
    )


def test_a_name_that_leads_elsewhere_is_told(session: StoredSession) -> None:
    assert changed(session, lambda tables: tables.execute("UPDATE names SET number = 2")) == ("name", 5)
    assert "it leads to entry 2" in session.verify(segments=False).what
    assert changed(session, lambda tables: tables.execute("DELETE FROM names")) == ("name", 5)
    back = ("INSERT INTO names VALUES (?, 'end', 5)", (session.id,))
    assert changed(session, lambda tables: tables.execute(*back)) == ("", None)
    session.checkpoint("other")
    session.checkpoint("other")
    session.forget("end")
    assert session.verify().ok
    assert changed(session, lambda tables: tables.execute("UPDATE names SET number = 6")) == ("name", 7)
    again = "INSERT INTO names SELECT session, 'end', 5 FROM names"
    fixed = "UPDATE names SET number = 7"
    assert changed(session, lambda tables: (tables.execute(fixed), tables.execute(again))) == ("name", 5)


@pytest.mark.parametrize(
    "change", ["UPDATE origins SET origin = replace(origin, 'tiny', 'tinY')", "UPDATE sessions SET origin = NULL"]
)
def test_an_origin_that_was_changed_is_told(session: StoredSession, change: str) -> None:
    assert changed(session, lambda tables: tables.execute(change)) == ("origin", 0)


def test_what_was_collected_is_not_missed_and_branches_are_checked_from_where_they_began(store: Store) -> None:
    session = store.session("talk", create=True)
    for tokens in (5, 9, 20, 40):
        session.append(part_of(WHOLE, 0, tokens), lossless=True)
    branch = session.branch("branch", at=1)
    branch.append_tokens(WHOLE.token_ids[:30])
    session.rewind(0)
    store.remove("talk")
    store.gc(grace_seconds=0)
    assert branch.verify().ok
    assert entry_id(session.id, 2) != entry_id(branch.id, 2)
    lie = rewrite(branch, 1, prefix="00" * 16)
    with sqlite3.connect(store.database.path) as tables:
        lie(tables)
    assert (branch.verify().kind, branch.verify().bad) == ("segment", 1)
