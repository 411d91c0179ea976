"""One writer at a time: living ones are waited for, dead ones succeeded, those of other machines named and believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kvcompress.errors import InputError
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from kvcompress.store.writer import GONE, HERE, UNKNOWN, retire, state_of, this_writer
from tests.store.examples import ids_of, snapshot_of

WHOLE = snapshot_of(ids_of(20))


@pytest.fixture
def session(store: Store) -> StoredSession:
    return store.session("talk", create=True)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that has nothing to do with the store."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def writer(**changes: Any) -> dict[str, Any]:
    found = this_writer()
    retire(found)
    return found | {"id": "0" * 16} | changes


def noted(session: StoredSession, found: object) -> None:
    with session.store.database.write() as tables:
        text = found if isinstance(found, str) else json.dumps(found)
        tables.execute("UPDATE sessions SET writer = ? WHERE id = ?", (text, session.id))


def fence(session: StoredSession) -> int:
    with session.store.database.read() as tables:
        return int(tables.execute("SELECT fence FROM sessions WHERE id = ?", (session.id,)).fetchone()[0])


def start_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[19]


def test_a_writer_on_another_host_is_named_with_its_process(session: StoredSession) -> None:
    noted(session, writer(host="far-away", pid=4711))
    assert state_of(writer(host="far-away")) == UNKNOWN
    for change in (
        lambda: session.append(WHOLE, lossless=True),
        lambda: session.checkpoint("x"),
        lambda: session.append_tokens(WHOLE.token_ids, WHOLE),
        lambda: session.store.remove("talk"),
    ):
        with pytest.raises(InputError, match=r"being written by process 4711 on far-away.*or branch") as failure:
            change()
        assert "\n" not in str(failure.value)
    assert len(session) == 0
    session.store.session("mine", create=True).append(WHOLE, lossless=True)  # another session is nobody's business


def test_what_a_writer_elsewhere_holds_is_read_and_branched(session: StoredSession) -> None:
    session.append(WHOLE, lossless=True)
    noted(session, writer(host="far-away"))
    assert session.snapshot().tokens == 20
    session.branch("mine").checkpoint("on")
    assert session.verify().ok


def test_processes_of_another_space_of_numbers_are_not_judged(session: StoredSession) -> None:
    noted(session, writer(space="pid:[1]", pid=1 << 22))
    with pytest.raises(InputError, match="being written"):
        session.append(WHOLE, lossless=True)


@pytest.mark.parametrize(
    "changes",
    [{"boot": "an earlier one"}, {"pid": 1 << 22}, {"pid": -1}, {"pid": "x"}, {"pid": 1 << 70}],
    ids=["before a restart", "ended", "negative", "no number", "too large"],
)
def test_who_is_gone_is_succeeded_and_the_fence_rises(session: StoredSession, changes: dict[str, Any]) -> None:
    noted(session, writer(**changes))
    before = fence(session)
    session.append(WHOLE, lossless=True)
    assert fence(session) == before + 1
    session.checkpoint("again")
    assert fence(session) == before + 1  # who writes already raises nothing


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system does not say when a process started")
def test_a_living_writer_is_waited_for_and_its_number_alone_is_none(
    session: StoredSession, sleeper: subprocess.Popen[bytes]
) -> None:
    alive = writer(pid=sleeper.pid, started=start_of(sleeper.pid))
    assert state_of(alive) == HERE
    noted(session, alive)
    with pytest.raises(InputError, match=f"being written by process {sleeper.pid} on"):
        session.append(WHOLE, lossless=True)
    assert state_of(alive | {"started": "1"}) == GONE  # the number was given to another process since
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    assert state_of(alive) == GONE
    session.append(WHOLE, lossless=True)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"pid": 1, "pid": 2'])
def test_a_damaged_note_stands_in_nobodys_way(session: StoredSession, text: str) -> None:
    noted(session, text)
    session.append(WHOLE, lossless=True)
    assert session.verify().ok


def test_two_stores_of_one_process_take_turns(session: StoredSession) -> None:
    session.append(WHOLE, lossless=True)
    with Store(session.store.path) as second:
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            second.session("talk").checkpoint("mine")
        session.store.close()
        second.session("talk").checkpoint("mine")
