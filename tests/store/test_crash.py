"""What happens to a store whose writers are killed, or whose disk fills up: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcompress.errors import InputError
from kvcompress.store.segment import part_of
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

WRITERS, APPENDS, KILLS = 4, 125, 6


def write(folder: Path, name: str, acknowledge: int) -> None:
    """Append a token at a time from where the session stands, and tell of each that is acknowledged."""
    whole = snapshot_of(ids_of(APPENDS, seed=sum(name.encode())))
    with Store(folder) as store:
        session = store.session(name, create=True)
        for tokens in range(session.tokens + 1, APPENDS + 1):
            entry = session.append(part_of(whole, 0, tokens), lossless=True)
            os.write(acknowledge, f"{entry.number} {entry.anchor}\n".encode())


def started(folder: Path, name: str) -> tuple[int, int]:
    """Start a writer; return its process and the end of the pipe on which it tells."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            write(folder, name, writing)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    return process, reading


def told(reading: int) -> list[tuple[int, str]]:
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines(keepends=True)
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_writers_killed_at_any_moment_lose_nothing_that_was_acknowledged(place: Path) -> None:
    chance = random.Random(7)
    Store(place, create=True).close()
    names = [f"writer {index}" for index in range(WRITERS)]
    acknowledged: dict[str, list[tuple[int, str]]] = {name: [] for name in names}
    for turn in range(KILLS + 1):
        running = {name: started(place, name) for name in names}
        for name in chance.sample(names, WRITERS):
            process, reading = running[name]
            if turn < KILLS:
                time.sleep(chance.uniform(0, 0.15))
                os.kill(process, signal.SIGKILL)
            acknowledged[name] += told(reading)
            _, status = os.waitpid(process, 0)
            assert turn < KILLS or status == 0
    kept: set[str] = set()
    with Store(place) as store:
        assert sum(map(len, acknowledged.values())) >= WRITERS * (APPENDS - KILLS)  # a kill hides one at most
        for name in names:
            session = store.session(name)
            entries = list(session)
            anchors = {entry.number: entry.anchor for entry in entries}
            assert all(anchors[number] == anchor for number, anchor in acknowledged[name])
            assert [entry.number for entry in entries] == list(range(APPENDS))
            assert session.verify().ok
            assert same(session.snapshot(), snapshot_of(ids_of(APPENDS, seed=sum(name.encode()))))
            kept |= {entry.segment for entry in entries}
        with store.database.read() as tables:
            assert tables.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            uses = {bytes(row["digest"]).hex(): row["uses"] for row in tables.execute("SELECT * FROM segments")}
            stored = tables.execute("SELECT stored_bytes FROM store").fetchone()[0]
        assert uses == dict.fromkeys(kept, 1)
        store.gc(grace_seconds=0)
        left = {found.name: found.size_bytes for found in store.objects.found()}
        assert set(left) == kept
        assert sum(left.values()) == stored


def test_of_a_dead_writer_the_next_one_takes_over_and_a_living_one_is_refused(place: Path) -> None:
    whole = snapshot_of(ids_of(9))
    Store(place, create=True).close()
    process, reading = started(place, "talk")
    told(reading)
    os.waitpid(process, 0)
    with Store(place) as first, Store(place) as second:
        first.session("mine", create=True).append(part_of(whole, 0, 3), lossless=True)
        with pytest.raises(InputError, match=f"being written by process {os.getpid()}"):
            second.session("mine").append(part_of(whole, 0, 4), lossless=True)
        with pytest.raises(InputError, match="being written"):
            second.session("mine").checkpoint("x")
        assert second.session("mine").tokens == 3
        first.close()
        assert second.session("mine").append(part_of(whole, 0, 4), lossless=True).number == 1


# -- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=False)


def test_a_full_disk_refuses_in_one_line_and_goes_on_once_there_is_room(small_disk: Path) -> None:
    whole = snapshot_of(ids_of(400), size=2048)
    store = Store(small_disk / "store", create=True)
    session = store.session("talk", create=True)
    acknowledged = list[int]()

    def fill() -> None:
        for tokens in range(1, 401):
            session.append(part_of(whole, 0, tokens), lossless=True)
            acknowledged[:] = [tokens]

    with pytest.raises(InputError) as failure:
        fill()
    (kept,) = acknowledged
    assert 5 < kept < 400
    assert "\n" not in str(failure.value)
    assert "Free some space" in str(failure.value)
    assert session.tokens == kept
    assert session.verify().ok
    store.close()
    with Store(small_disk / "store") as again:  # a full disk is read as any other
        assert same(again.session("talk").snapshot(), part_of(whole, 0, kept))
        assert again.session("talk").verify().ok
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    with Store(small_disk / "store") as again:
        again.session("talk").append(part_of(whole, 0, kept + 9), lossless=True)
        assert same(again.session("talk").snapshot(), part_of(whole, 0, kept + 9))
        assert again.session("talk").verify().ok


def test_a_segment_that_finds_no_room_leaves_no_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = snapshot_of(ids_of(20))
    session = store.session("talk", create=True)
    session.append(part_of(whole, 0, 5), lossless=True)

    def refuse(*given: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(InputError, match="Free some space"):
            session.append(whole, lossless=True)
    assert len(session) == 1
    assert session.append(whole, lossless=True).number == 1
    assert session.verify().ok
