"""Two stores in processes of their own, and a place between them: a folder, memory, or a server that speaks S3.

One of the processes is killed while it sends and while it fetches; run again, it goes on, and both end bit-equal.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")

from kvcompress.store.keys import StoreKey  # noqa: E402
from kvcompress.store.remote import Remote  # noqa: E402
from kvcompress.store.segment import part_of  # noqa: E402
from kvcompress.store.store import Store  # noqa: E402
from kvcompress.store.sync import sync  # noqa: E402
from tests.store.examples import ids_of, snapshot_of  # noqa: E402
from tests.store.test_portable import equal  # noqa: E402

TURNS = 10
WHOLE = snapshot_of(ids_of(6 * TURNS), size=64)
KEY = StoreKey(b"k" * 32)
PAUSE = 0.2

SIDE = "import sys; from tests.store.test_two_hosts import side; print(side(*sys.argv[1:]), flush=True)"


def side(folder: str, address: str, server: str, key: str, pause: str) -> str:
    """What each of the two processes does: synchronise, after each segment with a pause."""
    for name in ("put_segment", "segment"):
        setattr(Remote, name, slowly(getattr(Remote, name), float(pause)))
    options = {"key": "k", "secret": "s", "endpoint_url": server} if server else {}
    with Store(folder, create=True, key=StoreKey(bytes.fromhex(key)) if key else None) as store:
        [told] = sync(store, address, options=options, workers=1)
    facts = (told.direction, told.entries, told.segments, told.present, told.latency_seconds, told.bytes_per_second)
    return " ".join(map(str, facts))


def slowly(real: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        done = real(*given)
        time.sleep(seconds)
        return done

    return call


@pytest.fixture(params=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> StoreKey | None:
    if request.param == "plain":
        return None
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra store)")
    return KEY


@pytest.fixture
def home(place: Path, key: StoreKey | None) -> Path:
    with Store(place, create=True, key=key) as store:
        talk = store.session("talk", create=True)
        for turn in range(1, TURNS + 1):
            talk.append(part_of(WHOLE, 0, 6 * turn), lossless=True)
        talk.checkpoint("end")
    return place


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3-compatible server: the program `moto_server`, beside this Python or on the search path."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    program = shutil.which(
        "moto_server", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if program is None:
        pytest.skip("moto_server is not installed (extra dev)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Running:
    """One of the two processes: forked where that does, as starting Python takes long; a client of S3 has threads."""

    def __init__(self, folder: Path, address: str, server: str, key: StoreKey | None, pause: float) -> None:
        given = (str(folder), address, server, key.secret.hex() if key is not None else "", str(pause))
        reading, writing = os.pipe()
        if server:
            self.child = subprocess.Popen([sys.executable, "-c", SIDE, *given], stdout=writing)
            self.process = self.child.pid
        else:
            self.process = os.fork()
        if not self.process:
            try:
                os.write(writing, side(*given).encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(writing)
        self._told = os.fdopen(reading)

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        child = getattr(self, "child", None)
        status = child.wait() if child is not None else os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.said = self._told.read()
        self._told.close()
        return status

    def told(self) -> list[str]:
        assert self.end() == 0
        print(self.said)
        return self.said.split()

    def kill_after(self, count: Callable[[], int]) -> None:
        """Kill it once it has moved two segments."""
        limit = time.monotonic() + 120
        while count() < 2 and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(self.process, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL


def here(folder: Path) -> int:
    return sum(len(file.name) == 62 for file in (folder / "segments").rglob("*"))


def contents(folder: Path, key: StoreKey | None) -> dict[str, bytes]:
    """What the segments of a store hold, by name; encrypted files differ by their nonces."""
    with Store(folder, key=key) as store:
        return {found.name: store.objects.get(found.name) for found in store.objects.found() if found.name}


def back_and_forth(home: Path, other: Path, address: str, server: str, key: StoreKey | None, there: Any) -> None:
    """Send and fetch with a kill in each, then go on at the other side and back."""
    Running(home, address, server, key, PAUSE).kill_after(there)
    gone = there()
    assert 2 <= gone < TURNS
    told = Running(home, address, server, key, 0).told()
    assert told[:4] == ["push", str(TURNS + 1), str(TURNS - gone), str(gone)]
    Running(other, address, server, key, PAUSE).kill_after(lambda: here(other))
    come = here(other)
    assert 2 <= come < TURNS
    told = Running(other, address, server, key, 0).told()
    assert told[:4] == ["pull", str(TURNS + 1), str(TURNS - come), str(come)]
    assert float(told[4]) > 0
    assert float(told[5]) > 0
    assert contents(home, key) == contents(other, key)
    with Store(home, key=key) as one_side, Store(other, key=key) as other_side:
        assert equal(one_side.session("talk"), other_side.session("talk"))
        other_side.session("talk").checkpoint("more")
    assert Running(other, address, server, key, 0).told()[:2] == ["push", "1"]
    assert Running(home, address, server, key, 0).told()[:2] == ["pull", "1"]
    with Store(home, key=key) as one_side, Store(other, key=key) as other_side:
        assert equal(one_side.session("talk"), other_side.session("talk"))


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")


def test_over_a_folder(home: Path, tmp_path: Path, key: StoreKey | None) -> None:
    middle = tmp_path / "middle"
    back_and_forth(home, tmp_path / "other", str(middle), "", key, lambda: here(middle))


def test_over_s3(home: Path, tmp_path: Path, key: StoreKey | None, server: str) -> None:
    import s3fs

    files, bucket = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=server), uuid.uuid4().hex
    files.mkdir(bucket)

    def there() -> int:
        files.invalidate_cache()
        return len(files.find(f"{bucket}/place/segments"))

    back_and_forth(home, tmp_path / "other", f"s3://{bucket}/place", server, key, there)


class Cut(BaseException):
    """What ends a transfer wherever it is, as a signal would."""


@pytest.mark.parametrize("after", [1, 4])
def test_over_memory(
    home: Path, tmp_path: Path, key: StoreKey | None, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory belongs to one process, so it is interrupted by what ends a thread."""
    address = f"memory://{uuid.uuid4().hex}"

    def cut(name: str) -> None:
        left, real = [after], getattr(Remote, name)

        def counted(self: Remote, *given: Any) -> Any:
            if not left[0]:
                raise Cut
            left[0] -= 1
            return real(self, *given)

        monkeypatch.setattr(Remote, name, counted)

    with Store(home, key=key) as one, Store(tmp_path / "other", create=True, key=key) as two:
        for store, name, direction in ((one, "put_segment", "push"), (two, "segment", "pull")):
            cut(name)
            with pytest.raises(Cut):
                sync(store, address, workers=1)
            monkeypatch.undo()
            assert store is one or store.list() == []
            [told] = sync(store, address, workers=1)
            assert (told.direction, told.segments, told.present) == (direction, TURNS - after, after)
        assert equal(one.session("talk"), two.session("talk"))
    assert contents(home, key) == contents(tmp_path / "other", key)
