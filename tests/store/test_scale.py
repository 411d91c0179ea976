"""A store that has grown long: what an append costs, what it writes, and how long looking back takes."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import pytest

from kvcompress.format.strict_json import canonical_json
from kvcompress.store.database import SESSION_SPAN
from kvcompress.store.log import APPEND, CHECKPOINT, Link, context_of
from kvcompress.store.schema import AFTER
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.store.examples import ids_of, snapshot_of

LONG, VERY_LONG = 10_000, 100_000


def appended(session: StoredSession, tokens: range) -> list[float]:
    """Seconds that each of some appends of a token takes."""
    whole, found = snapshot_of(ids_of(tokens.stop)), []
    for count in tokens:
        cut = part_of(whole, 0, count)
        start = time.perf_counter()
        session.append(cut, lossless=True)
        found.append(time.perf_counter() - start)
    return found


def steps(session: StoredSession, tokens: range) -> float:
    """Steps of SQLite's machine for an append, a number that no busy neighbour changes."""
    counted, connection = [0], session.store.database.connection

    def count() -> int:
        counted[0] += 1
        return 0

    connection.set_progress_handler(count, 10)
    appended(session, tokens)
    connection.set_progress_handler(None, 0)
    return 10 * counted[0] / len(tokens)


def grown(session: StoredSession, entries: int, *, turns: bool) -> None:
    """Let a log grow to so many entries at once, by the rows that appends would add; the files are not written."""
    rows, link = list[tuple[object, ...]](), session.head.link if session.head else Link()
    for number in range(len(session), entries):
        parent = session.id * SESSION_SPAN + number - 1 if number else None
        kind, start, end = (APPEND, number, number + 1) if turns else (CHECKPOINT, 0, 0)
        segment = number.to_bytes(32, "big") if turns else b""
        context = canonical_json(context_of(number, kind, number - 1 if number else None, start, end, {"time": 0}))
        link = link.then(segment, context)
        entry = (session.id * SESSION_SPAN + number, parent, kind, start, end, segment or None, context.decode())
        rows.append((*entry, link.anchor, link.digest, int(turns)))
    with session.store.database.write() as tables:
        tables.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        asked = "UPDATE sessions SET entries = ?, anchor = ?, digest = ? WHERE id = ?"
        tables.execute(asked, (entries, link.anchor, link.digest, session.id))


def test_an_append_costs_the_same_after_ten_thousand_entries(store: Store) -> None:
    session = store.session("talk", create=True)
    first, few = median(appended(session, range(1, 101))), steps(session, range(101, 121))
    short = store.statistics().database_bytes
    grown(session, LONG - 120, turns=False)
    session.rewind(119)
    last, many = median(appended(session, range(121, 221))), steps(session, range(221, 241))
    assert many <= 1.5 * few
    assert last <= 3 * first  # seconds on a machine that others use; the steps above are the law
    store.database.checkpoint(shrink=True)
    assert store.statistics().database_bytes < short + 600 * LONG
    store.close()
    start = time.perf_counter()
    with Store(store.path) as again:
        assert again.session("talk").tokens == 240
        assert time.perf_counter() - start < 0.2


@pytest.mark.slow
def test_ten_thousand_appends_one_after_another(place: Path) -> None:
    with Store(place, create=True) as store:
        session = store.session("talk", create=True)
        seconds = appended(session, range(1, LONG + 1))
        assert median(seconds[-100:]) <= 1.5 * median(seconds[:100])
        assert session.verify().ok


def test_a_hundred_thousand_entries_are_walked_without_recursion(store: Store) -> None:
    session = store.session("talk", create=True)
    grown(session, VERY_LONG, turns=True)
    assert sum(1 for _ in session) == VERY_LONG
    assert session.rewind(turns=VERY_LONG - 1).end == 1
    assert session.rewind(VERY_LONG - 1).end == VERY_LONG
    assert session.rewind(turns=VERY_LONG // 2).end == VERY_LONG // 2
    assert [turn.end for turn in session.turns()] == list(range(1, VERY_LONG // 2 + 1))
    assert session.verify(segments=False).ok


def test_little_more_is_written_than_is_added(tmp_path: Path) -> None:
    """Turns of 128 tokens, 1.6 kB a token: as a model of 135 million parameters has at a size ratio of 14."""
    tokens, turns = 128, 20
    whole = snapshot_of(ids_of(tokens * turns), size=110)
    with Store(tmp_path / "store", create=True) as store:
        session = store.session("talk", create=True)
        before = written_by_this_process()
        for turn in range(1, turns + 1):
            session.append(part_of(whole, 0, turn * tokens), lossless=True)
        store.database.checkpoint()
        found = store.statistics()
        measured = written_by_this_process() - before
    assert found.added_bytes / turns < 210_000
    assert found.write_amplification < 1.2
    assert measured < 1.2 * found.added_bytes
    assert 0.9 * measured < found.written_bytes < 1.1 * measured


def written_by_this_process() -> int:
    """Bytes that went through write calls, of every file."""
    lines = Path("/proc/self/io")
    if not lines.is_file():
        pytest.skip("this system does not count what a process writes")
    return int(dict(line.split(": ") for line in lines.read_text().splitlines())["wchar"])


def test_what_an_append_writes_beside_its_segment_is_bounded(tmp_path: Path) -> None:
    """Short turns, 8 kB each: a dozen small pages a commit, copied back once."""
    turns, tokens = 100, 5
    whole = snapshot_of(ids_of(tokens * turns), size=110)
    with Store(tmp_path / "store", create=True) as store:
        session = store.session("talk", create=True)
        for turn in range(1, turns + 1):
            session.append(part_of(whole, 0, turn * tokens), lossless=True)
        store.database.checkpoint()
        found = store.statistics()
    assert (found.written_bytes - found.added_bytes) / turns < 6_500


@pytest.mark.parametrize("parent", [b"", bytes(32)])
def test_what_follows_a_segment_is_found_without_looking_at_all_of_them(store: Store, parent: bytes) -> None:
    asked = f"EXPLAIN QUERY PLAN SELECT digest FROM segments WHERE {AFTER} AND end > 0 ORDER BY end DESC"
    plan = [row["detail"] for row in store.database.connection.execute(asked, {"parent": parent})]
    assert plan == ["SEARCH segments USING INDEX segments_after (<expr>=? AND end>?)"]
