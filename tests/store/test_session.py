"""Sessions of a store: what is appended comes back, states are gone back to, and nothing is stored twice."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from kvcompress.errors import InputError, MismatchError
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress.store.log import Entry
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.store.examples import ids_of, origin, same, snapshot_of

WHOLE = snapshot_of(ids_of(60))
TURNS = (7, 20, 21, 60)


@pytest.fixture
def session(store: Store) -> StoredSession:
    found = store.session("talk", create=True)
    for tokens in TURNS:
        found.append(part_of(WHOLE, 0, tokens), lossless=True)
    return found


def files(store: Store) -> int:
    return sum(1 for _ in store.objects.found())


def test_a_session_appended_in_turns_is_the_same_bit_by_bit(session: StoredSession) -> None:
    assert same(session.snapshot(), WHOLE)
    assert torch.equal(session.token_ids(), WHOLE.token_ids)
    for number, tokens in enumerate(TURNS):
        assert same(session.snapshot(number), part_of(WHOLE, 0, tokens))


def test_a_segment_holds_the_new_tokens_alone(session: StoredSession) -> None:
    parts = [session.store.part(entry.segment) for entry in session]
    assert [(part.start, part.end) for part in parts] == [(0, 7), (7, 20), (20, 21), (21, 60)]
    assert [part.encoded.raw_bytes for part in parts] == [32 * tokens for tokens in (7, 13, 1, 39)]
    assert [part.parent for part in parts[1:]] == [entry.segment for entry in list(session)[:3]]


def test_nothing_new_adds_nothing(session: StoredSession) -> None:
    assert session.append(WHOLE, lossless=True).number == 3
    assert len(session) == 4


def test_a_window_that_moves_on_comes_back_as_it_was(store: Store) -> None:
    kinds = ("full_attention", "sliding_attention")

    def windowed(tokens: int) -> KVSnapshot:
        cut, kept = part_of(WHOLE, 0, tokens), min(tokens, 15)
        last = cut.layers[1]
        layers = (cut.layers[0], LayerKV(last.keys[:, -kept:], last.values[:, -kept:], last.positions[-kept:]))
        return KVSnapshot(layers, cut.token_ids, origin(tokens, kinds=kinds))

    session = store.session("windows", create=True)
    for tokens in (4, 19, 20, 60):
        session.append(windowed(tokens), lossless=True, cuts=[10])
        assert same(session.snapshot(), windowed(tokens))


def test_other_tokens_and_other_models_are_refused(session: StoredSession) -> None:
    other = WHOLE.token_ids.clone()
    other[5] += 1
    with pytest.raises(InputError, match="do not begin with the 60"):
        session.append(snapshot_of(other), lossless=True)
    with pytest.raises(InputError, match="do not begin"):
        session.append(part_of(WHOLE, 0, 30), lossless=True)
    with pytest.raises(MismatchError, match="config"):
        session.append(snapshot_of(ids_of(60), model="d"), lossless=True)
    halves = tuple(LayerKV(one.keys.half(), one.values.half(), one.positions) for one in WHOLE.layers)
    with pytest.raises(MismatchError, match="data type"):
        session.append(KVSnapshot(halves, WHOLE.token_ids, replace(WHOLE.origin, dtype="float16")), lossless=True)
    with pytest.raises(InputError, match="exclude each other"):
        session.append(snapshot_of(ids_of(61)), lossless=True, quality="high")
    assert len(session) == 4


def test_a_file_of_a_part_is_not_read_as_a_session(session: StoredSession, tmp_path: object) -> None:
    from kvcompress.codec.lossless import LosslessCodec

    part = session.store.part(session.entry(2).segment)
    with pytest.raises(InputError, match="segment of a stored session"):
        LosslessCodec().decode(part.encoded)


# -- states


def test_going_back_and_on_again_keeps_what_was_said_before(session: StoredSession) -> None:
    session.checkpoint("end")
    assert session.rewind(1).end == 20
    assert same(session.snapshot(), part_of(WHOLE, 0, 20))
    other = snapshot_of(torch.cat([WHOLE.token_ids[:20], ids_of(9, seed=5)]))
    session.append(other, lossless=True)
    assert same(session.snapshot(), other)
    assert [turn.number for turn in session.turns()] == [0, 1, 6]
    assert same(session.snapshot("end"), WHOLE)
    session.rewind("end")
    assert same(session.snapshot(), WHOLE)
    assert session.rewind(turns=0).end == 60
    assert session.rewind(turns=2).end == 20
    assert session.rewind(turns=2).end == 0
    assert session.turns() == []
    with pytest.raises(InputError, match="holds no tokens"):
        session.snapshot()
    with pytest.raises(InputError, match="0 turns, not 1"):
        session.rewind(turns=1)
    assert session.append(WHOLE, lossless=True).end == 60
    assert session.verify().ok


def test_pop_takes_the_last_turn_away_and_survives_a_restart(session: StoredSession) -> None:
    session.checkpoint("x")
    top = session.peek()
    assert top is not None
    assert (top.number, session.tokens) == (3, 60)
    assert session.pop() == top
    session.store.close()
    again = Store(session.store.path).session("talk")
    assert again.tokens == 21
    assert [entry.number for entry in (again.pop(), again.pop(), again.pop()) if entry] == [2, 1, 0]
    assert again.pop() is None
    assert again.peek() is None
    assert [entry.kind for entry in again] == ["append"] * 4 + ["checkpoint"] + ["pop"] * 4
    assert again.verify().ok
    assert same(again.snapshot("x"), WHOLE)
    again.store.close()


def test_names_are_given_moved_and_forgotten(session: StoredSession) -> None:
    session.checkpoint("a")
    session.rewind(0)
    session.checkpoint("a")
    assert session.snapshot("a").tokens == 7
    session.forget("a")
    for refused in (lambda: session.forget("a"), lambda: session.rewind("a"), lambda: session.entry(99)):
        with pytest.raises(InputError):
            refused()
    for name in ("7", " a", "a\n", "x" * 201):
        with pytest.raises(InputError, match="cannot be the name"):
            session.checkpoint(name)


def test_a_branch_goes_on_by_itself_and_nothing_is_copied(session: StoredSession) -> None:
    before = files(session.store)
    branch = session.branch("other", at=1)
    assert (branch.tokens, files(session.store)) == (20, before)
    longer = snapshot_of(torch.cat([WHOLE.token_ids[:30], ids_of(5, seed=9)]))
    branch.append(longer, lossless=True)
    assert same(branch.snapshot(), longer)
    assert same(session.snapshot(), WHOLE)
    found = session.diff(branch)
    assert (found.shared_turns, found.shared_tokens) == (3, 30)
    assert [[entry.number for entry in side] for side in (found.here, found.there)] == [[3], [2]]
    assert branch.verify().ok
    assert branch.pop() is not None
    assert branch.rewind(turns=2).end == 7
    with pytest.raises(InputError, match="already"):
        session.branch("other")
    session.store.remove("talk")
    session.store.gc(grace_seconds=0)
    branch.append(longer, lossless=True)
    assert same(branch.snapshot(), longer)


def test_a_prefix_recorded_twice_is_stored_once(session: StoredSession) -> None:
    store, before = session.store, files(session.store)
    twice = store.session("twice", create=True)
    longer = snapshot_of(torch.cat([WHOLE.token_ids[:21], ids_of(8, seed=3)]))
    twice.append(longer, lossless=True)
    assert same(twice.snapshot(), longer)
    assert [entry.segment for entry in twice.turns()][:3] == [entry.segment for entry in session.turns()][:3]
    assert files(store) == before + 1
    third = store.session("third", create=True)
    third.append(WHOLE, lossless=True, cuts=[3])
    assert files(store) == before + 1


def test_what_nothing_leads_to_is_collected_and_nothing_else(session: StoredSession) -> None:
    store = session.store
    session.checkpoint("end")
    session.rewind(0)
    assert store.gc(grace_seconds=0).segments == 0
    session.forget("end")
    session.checkpoint()
    assert store.gc(grace_seconds=3600).segments == 0
    found = store.gc(grace_seconds=0)
    assert (found.segments, files(store)) == (3, 1)
    assert found.freed_bytes > 0
    assert session.verify().ok
    assert session.snapshot().tokens == 7
    with pytest.raises(InputError, match="collected"):
        session.snapshot(3)
    session.append(WHOLE, lossless=True)
    assert same(session.snapshot(), WHOLE)


def test_automatic_checkpoints_beyond_the_last_ones_go(session: StoredSession) -> None:
    for number in (3, 1, 0):
        session.rewind(number)
        session.checkpoint()
    assert session.store.gc(grace_seconds=0, keep_last=3).segments == 0
    assert session.store.gc(grace_seconds=0, keep_last=2).segments == 2
    assert session.store.gc(grace_seconds=0, keep_last=1).segments == 1
    assert session.verify().ok


def test_left_overs_of_interrupted_writes_are_swept(session: StoredSession) -> None:
    folder = session.store.path / "segments" / "ab"
    folder.mkdir(exist_ok=True)
    for name in (".kvcompress-0123.tmp", "cd" * 31):
        (folder / name).write_bytes(b"left over")
        os.utime(folder / name, (time.time() - 50,) * 2)
    (folder / ".kvcompress-45-67").mkdir()
    (folder / ".kvcompress-45-67" / "lock").touch()
    os.utime(folder / ".kvcompress-45-67", (time.time() - 50,) * 2)
    assert session.store.gc(grace_seconds=60).files == 0
    assert session.store.gc(grace_seconds=40).files == 3
    assert session.verify().ok


# -- a limit on the disk


def test_bits_that_differ_are_not_shared_without_loss(session: StoredSession) -> None:
    moved = tuple(LayerKV(one.keys + 1e-3, one.values, one.positions) for one in WHOLE.layers)
    other = KVSnapshot(moved, WHOLE.token_ids, WHOLE.origin)
    twice = session.store.session("twice", create=True)
    twice.append(other, lossless=True)
    assert same(twice.snapshot(), other)
    assert len(twice) == 1


def test_a_store_never_takes_more_than_its_limit(place: object) -> None:
    limit = 300_000
    with Store(place, create=True, max_bytes=limit) as store:  # type: ignore[arg-type]
        named = store.session("named", create=True)
        named.append(snapshot_of(ids_of(40, seed=1), size=64), lossless=True)
        named.checkpoint("keep")
        for index in range(12):
            session = store.session(f"s{index}", create=True)
            session.append(snapshot_of(ids_of(60, seed=index), size=64), lossless=True)
            taken = sum(
                file.stat().st_size for file in store.path.rglob("*") if file.is_file() and "shm" not in file.name
            )
            assert taken <= limit
        assert same(named.snapshot(), snapshot_of(ids_of(40, seed=1), size=64))
        assert same(session.snapshot(), snapshot_of(ids_of(60, seed=11), size=64))
        oldest = store.session("s0")
        assert torch.equal(oldest.token_ids(), ids_of(60, seed=0))
        with pytest.raises(InputError, match="ids alone"):
            oldest.snapshot()
        assert all(one.verify().ok for one in store)
        with pytest.raises(InputError, match="do not fit"):
            store.session("large", create=True).append(snapshot_of(ids_of(400), size=256), lossless=True)
        assert len(store.session("large")) == 0


# -- readers and writers


def test_iterators_give_the_log_as_it_was_when_they_began(session: StoredSession) -> None:
    async def gather() -> list[Entry]:
        found = []
        async for entry in session:
            found.append(entry)
            session.checkpoint()
        return found

    expected = list(session)
    assert asyncio.run(gather()) == expected
    one = iter(session)
    first = next(one)
    session.checkpoint()
    assert [first, *one] == list(session)[:-1]
    assert list(session.entries(newest_first=True)) == list(session)[::-1]


def test_threads_and_coroutines_append_without_loss(store: Store) -> None:
    def grow(name: str) -> None:
        for tokens in range(1, 11):
            store.session(name, create=True).append(part_of(WHOLE, 0, tokens), lossless=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(grow, "abcd"))

    async def talk() -> None:
        session = store.session("e", create=True)
        await session.append_async(WHOLE, lossless=True)
        marks = [session.checkpoint_async(f"c{index}") for index in range(8)]
        await asyncio.gather(*marks)
        await session.rewind_async("c3")
        assert same(await session.snapshot_async(), WHOLE)

    asyncio.run(talk())
    assert [len(store.session(name)) for name in "abcde"] == [10, 10, 10, 10, 20]
    assert all(one.verify().ok for one in store)


def test_every_change_raises_the_generation_and_readers_see_whole_entries(session: StoredSession) -> None:
    with Store(session.store.path) as reader:
        before = reader.generation
        seen = reader.session("talk")
        session.checkpoint("now")
        assert reader.generation == before + 1
        assert seen.names() == {"now": 4}


def test_tokens_alone_are_kept_where_their_cache_is_not_worth_it(session: StoredSession) -> None:
    longer = torch.cat([WHOLE.token_ids, ids_of(30, seed=4)])
    entry = session.append_tokens(longer)
    assert (entry.kind, entry.end) == ("tokens", 90)
    assert torch.equal(session.token_ids(), longer)
    with pytest.raises(InputError, match="ids alone"):
        session.snapshot()
    assert same(session.snapshot(3), WHOLE)
    assert session.verify().ok
