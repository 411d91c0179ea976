"""Two stores that become equal by way of a place: only what is missing goes over, and an interruption costs nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")

from fsspec.implementations.local import LocalFileSystem  # noqa: E402

from kvcompress.errors import FormatError, InputError  # noqa: E402
from kvcompress.store.remote import Remote  # noqa: E402
from kvcompress.store.segment import part_of  # noqa: E402
from kvcompress.store.session import StoredSession  # noqa: E402
from kvcompress.store.store import Store  # noqa: E402
from kvcompress.store.sync import PULL, PUSH, Synced, sync  # noqa: E402
from tests.store.examples import ids_of, snapshot_of  # noqa: E402
from tests.store.test_portable import equal  # noqa: E402

WHOLE = snapshot_of(ids_of(60))
TURNS = range(6, 61, 6)


@pytest.fixture
def session(store: Store) -> StoredSession:
    found = store.session("talk", create=True)
    for tokens in TURNS:
        found.append(part_of(WHOLE, 0, tokens), lossless=True)
    found.checkpoint("end")
    return found


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other", create=True)


@pytest.fixture(params=["file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "place") if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def one(found: list[Synced]) -> Synced:
    assert len(found) == 1
    return found[0]


def test_stores_become_equal_and_only_what_is_missing_goes_over(
    session: StoredSession, other: Store, address: str
) -> None:
    pushed = one(sync(session.store, address))
    assert (pushed.direction, pushed.entries, pushed.segments) == ("push", len(session), len(TURNS))
    pulled = one(sync(other, address))
    assert (pulled.direction, pulled.entries, pulled.segments) == ("pull", len(session), len(TURNS))
    assert pulled.transferred_bytes == pushed.transferred_bytes == session.store.statistics().stored_bytes
    assert pulled.latency_seconds is not None
    assert pulled.bytes_per_second is not None
    there = other.session("talk")
    assert equal(session, there)
    assert one(sync(other, address)).direction == "nothing"
    longer = snapshot_of(torch.cat([WHOLE.token_ids, ids_of(4, seed=4)]))
    there.append(longer, lossless=True)
    there.store.close()
    sent = Remote(address)
    before = len(list(sent.segments.found()))
    again = Store(other.path)
    pushed = one(sync(again, address))
    assert (pushed.direction, pushed.entries, pushed.segments) == ("push", 1, 1)
    assert len(list(sent.segments.found())) == before + 1
    assert one(sync(session.store, address)).entries == 1
    assert equal(again.session("talk"), session)
    again.close()


def test_long_logs_go_over_in_pieces_that_stay(store: Store, other: Store, address: str) -> None:
    session = store.session("talk", create=True)
    session.append(WHOLE, lossless=True)
    for number in range(600):
        session.checkpoint(f"c{number}")
    sync(store, address)
    first = {found.name for found in Remote(address).pieces.found()}
    assert len(first) == 3
    sync(other, address)
    session.rewind("c300")
    assert one(sync(store, address)).entries == 1
    assert len(first & {found.name for found in Remote(address).pieces.found()}) == 2
    assert one(sync(other, address)).entries == 1
    assert equal(session, other.session("talk"))
    assert Remote(address).sessions() == ["talk"]


def test_sessions_that_went_on_differently_are_refused_and_branches_go_over(
    session: StoredSession, other: Store, address: str
) -> None:
    sync(session.store, address)
    sync(other, address)
    there = other.session("talk")
    there.checkpoint("theirs")
    session.checkpoint("ours")
    sync(session.store, address)
    for direction in ("both", "push", "pull"):
        with pytest.raises(InputError, match=r"differently.*Branch it here"):
            sync(other, address, ["talk"], direction=direction)
    there.checkpoint("theirs, too")
    with pytest.raises(InputError, match="differently"):
        sync(other, address, ["talk"])
    other.session("talk").branch("mine")
    assert one(sync(other, address, ["mine"])).direction == "push"
    assert one(sync(other, address, ["talk"], direction=PULL, rename="yours")).segments == 0
    assert equal(session, other.session("yours"))
    assert one(sync(session.store, address, ["mine"])).direction == "pull"
    assert equal(other.session("mine"), session.store.session("mine"))


def test_of_two_that_push_at_the_same_time_one_stays(session: StoredSession, other: Store, address: str) -> None:
    sync(session.store, address)
    sync(other, address)
    session.checkpoint("a")
    other.session("talk").checkpoint("b")
    remote, taken = Remote(address), Remote(address)
    head = remote.head("talk")
    assert head is not None
    sync(session.store, address)
    from dataclasses import replace

    with pytest.raises(InputError, match="by another one meanwhile"):
        taken.put_head(replace(head, sequence=head.sequence + 1))
    assert one(sync(session.store, address)).direction == "nothing"


def test_what_was_changed_at_the_place_is_not_taken(session: StoredSession, other: Store, tmp_path: Path) -> None:
    place = tmp_path / "place"
    sync(session.store, str(place))
    for folder in ("segments", "logs", "heads"):
        file = next(file for file in sorted((place / folder).rglob("*")) if file.is_file())
        data = file.read_bytes()
        for changed in (data[:-1], data.replace(b"e", b"f", 1), bytes(len(data))):
            if changed == data:
                continue
            file.write_bytes(changed)
            with pytest.raises(FormatError) as failure:
                sync(other, str(place))
            assert "\n" not in str(failure.value)
        file.write_bytes(data)
    assert other.list() == []
    sync(other, str(place))
    assert equal(session, other.session("talk"))


def test_nothing_and_nobody_is_told_in_one_line(store: Store, tmp_path: Path) -> None:
    store.session("empty", create=True)
    assert sync(store, str(tmp_path / "place")) == []
    for name, direction in (("no one", "both"), ("no one", PUSH), ("empty", PULL)):
        with pytest.raises(InputError):
            sync(store, str(tmp_path / "place"), [name], direction=direction)
    with pytest.raises(InputError, match="cannot be used"):
        sync(store, "nosuchprotocol://place")


# -- interruptions


class Slow(LocalFileSystem):
    """A place that takes its time."""

    protocol = "slow"
    seconds = 0.05

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        time.sleep(self.seconds)
        super().pipe_file(path, value, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        time.sleep(self.seconds)
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    fsspec.register_implementation("slow", Slow, clobber=True)
    return tmp_path / "slow"


def killed_midway(store: Path, address: str, count: Any, direction: str) -> None:
    """Start to synchronise in another process and kill it once three segments are over."""
    process = os.fork()
    if process == 0:
        try:
            sync(Store(store), address, ["talk"], direction=direction, workers=1)
        finally:
            os._exit(1)
    limit = time.monotonic() + 60
    while count() < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_an_interrupted_push_and_pull_go_on_where_they_stopped(
    session: StoredSession, other: Store, slow: Path
) -> None:
    address, home = f"slow://{slow}", session.store.path
    session.store.close()

    def over(folder: Path) -> int:
        return sum(len(file.name) == 62 for file in (folder / "segments").rglob("*"))

    killed_midway(home, address, lambda: over(slow), PUSH)
    gone = over(slow)
    assert 3 <= gone < len(TURNS)
    assert not (slow / "heads").exists()
    with Store(home) as store:
        pushed = one(sync(store, address))
        assert (pushed.segments, pushed.present) == (len(TURNS) - gone, gone)
        here = other.path
        other.close()
        killed_midway(here, address, lambda: over(here), PULL)
        come = over(here)
        assert 3 <= come < len(TURNS)
        with Store(here) as there:
            assert there.list() == []
            pulled = one(sync(there, address))
            assert (pulled.segments, pulled.present) == (len(TURNS) - come, come)
            assert equal(store.session("talk"), there.session("talk"))
            names = [
                {file.name: file.read_bytes() for file in folder.rglob("*") if len(file.name) == 62}
                for folder in (home / "segments", here / "segments")
            ]
            assert names[0] == names[1]
