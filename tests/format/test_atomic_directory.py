"""Law: whenever the writer of a directory is killed, the old or the new is there whole, and the next one sweeps."""

from __future__ import annotations

import fcntl
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvcompress.errors import InputError
from kvcompress.format import atomic_directory as module
from kvcompress.format import working_folder
from kvcompress.format.atomic_directory import (
    UNFINISHED,
    atomic_directory,
    carry_over,
    discard,
    locked_directory,
    recover,
    require_directory,
    sweep,
)
from tests.format.killed import killed_after, killed_at_call

FILES = ("config.json", "model.safetensors", "README.md")
KILLS = 50
CALLS = [(os, name) for name in ("rename", "mkdir", "rmdir", "unlink", "fsync", "open", "chmod")]


def make(place: Path, text: str) -> None:
    for name in FILES:
        (place / name).write_text(text)
    (place / "part").mkdir(exist_ok=True)
    (place / "part" / "file").write_text(text)


def replace(target: Path, text: str) -> None:
    with atomic_directory(target, force=True) as fresh:
        make(fresh, text)


def read(target: Path) -> str:
    """Return what all files of a directory say, which must be the same."""
    found = {file.read_text() for file in (*(target / name for name in FILES), target / "part" / "file")}
    assert len(found) == 1, f"a mixture: {found}"
    assert sorted(entry.name for entry in target.iterdir()) == sorted((*FILES, "part"))
    return found.pop()


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote the system keeps: waiting for the disk is only slow here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["exchange", "two renames"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that says "old", on a system that exchanges names and on one that does not."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    replace(tmp_path / "codec", "old")
    return tmp_path / "codec"


def test_killed_before_any_call_to_the_system_the_old_or_the_new_is_there(target: Path) -> None:
    seen = []
    for number in range(1000):
        before = read(target)
        if not killed_at_call(number, CALLS, lambda: replace(target, "new")):
            break
        recover(target)
        seen.append(read(target))
        assert seen[-1] in (before, "new")
        replace(target, "old")
        assert names(target.parent) == ["codec"], f"left after a kill before call {number}"
    assert read(target) == "new"
    assert set(seen) == {"old", "new"}
    assert len(seen) > 20


def test_killed_at_any_moment_the_old_or_the_new_is_there(tmp_path: Path) -> None:
    target = tmp_path / "codec"
    replace(target, "old")
    chance, seen, left, start = random.Random(7), set(), 0, time.perf_counter()
    replace(target, "old")
    once = time.perf_counter() - start

    def work() -> None:
        for number in range(10**6):
            replace(target, f"{number}")

    kills = 0
    while kills < KILLS or left <= KILLS // 4:
        kills += 1
        assert kills < 20 * KILLS, "the kills did not meet the work"
        assert killed_after(chance.uniform(0, 3 * once), work)
        left += names(target.parent) != ["codec"]
        recover(target)
        seen.add(read(target))
        replace(target, "old")
        assert names(target.parent) == ["codec"]
    assert len(seen) > 1


def test_a_new_one_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "parents" / "codec"
    for number in range(1000):
        if not killed_at_call(number, CALLS, lambda: replace(target, "new")):
            break
        assert not target.exists() or read(target) == "new"
        if target.exists():
            target.rename(tmp_path / f"made{number}")
    assert read(target) == "new"
    assert names(target.parent) == ["codec"]


def test_what_cannot_be_put_back_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "codec"
    with working_folder.sole_folder(target) as folder:
        make_in(folder / "old", "old")
        working_folder.keep(target)

    def rename(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        for writer in (locked_directory(target), atomic_directory(target, force=True)):
            with pytest.raises(InputError, match=r"cannot be put back from .*: permission denied"), writer:
                pass
    replace(target, "new")
    assert read(target) == "new"


def test_a_reader_between_two_renames_finds_it_again(tmp_path: Path) -> None:
    target = tmp_path / "codec"
    with working_folder.sole_folder(target) as folder:
        make_in(folder / "old", "old")
        working_folder.keep(target)
    recover(target)
    assert read(target) == "old"
    assert names(tmp_path) == ["codec"]


def make_in(place: Path, text: str) -> None:
    place.mkdir()
    make(place, text)


HOLD = """
import sys, time
from kvcompress.format.atomic_directory import atomic_directory
with atomic_directory(sys.argv[1], force=True) as fresh:
    (fresh / "file").write_text("theirs")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_in_one_line_and_sweeps_nothing(target: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        sweep(target)
        with pytest.raises(InputError, match=r"codec: another process is writing it\. Wait for it"):
            replace(target, "ours")
        with pytest.raises(InputError, match="another process"), locked_directory(target):
            pass
        assert read(target) == "old"
        other.communicate("\n")
    assert (target / "file").read_text() == "theirs"
    assert names(target.parent) == ["codec"]


def test_a_failure_leaves_the_old_one_and_nothing_else(target: Path) -> None:
    def work() -> None:
        with atomic_directory(target, force=True) as fresh:
            make(fresh, "new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert read(target) == "old"
    assert names(target.parent) == ["codec"]


def test_what_is_to_go_on_goes_on(target: Path) -> None:
    def work() -> None:
        with atomic_directory(target, force=True, go_on=True) as fresh:
            (fresh / "half").write_text("kept")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    sweep(target)  # as a run that is refused does
    with atomic_directory(target, force=True, go_on=True) as fresh:
        assert fresh.name == UNFINISHED
        assert (fresh / "half").read_text() == "kept"
        (fresh / "half").unlink()
        make(fresh, "new")
    assert read(target) == "new"
    assert names(target.parent) == ["codec"]


def test_places_that_could_not_be_replaced_are_refused_before_the_work(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is no directory"):
        require_directory(tmp_path / "file", True)
    with pytest.raises(InputError, match=r"already exists\. Pass --force"):
        require_directory(target)
    with pytest.raises(InputError, match="mount point"):
        require_directory("/proc", True)
    for name in ("-", "/dev/stdout"):
        with pytest.raises(InputError, match="standard output does not take"):
            require_directory(name, True)
    monkeypatch.chdir(target / "part")
    for name in (".", "..", str(target)):
        with pytest.raises(InputError, match="working directory lies inside"):
            require_directory(name, True)


def test_a_link_stays_a_link_and_modes_stay(target: Path, tmp_path: Path) -> None:
    target.chmod(0o750)
    link = tmp_path / "link"
    link.symlink_to(target)
    replace(link, "new")
    assert link.is_symlink()
    assert read(target) == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


def test_what_lies_beside_is_carried_over_without_copies(target: Path) -> None:
    (target / "recompute-2").mkdir()
    (target / "recompute-2" / "weights").write_text("large")
    (target / ".kvcompress-left").mkdir()
    before = (target / "recompute-2" / "weights").stat().st_ino
    with atomic_directory(target, force=True) as fresh:
        make(fresh, "new")
        carry_over(target, fresh, ["recompute-2", ".kvcompress-left"])
    assert (target / "recompute-2" / "weights").stat().st_ino == before
    assert "recompute-2" in names(target)
    assert ".kvcompress-left" not in names(target)


def test_a_working_directory_disappears_at_once(target: Path) -> None:
    work = target.with_name("codec.fit")
    for number in range(1000):
        work.mkdir(exist_ok=True)
        for name in FILES:
            (work / name).write_text("work")
        if not killed_at_call(number, CALLS, lambda: discard(work, target)):
            break
        assert not work.exists() or len(names(work)) == len(FILES)
    assert names(target.parent) == ["codec"]


def test_without_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    replace(tmp_path / "codec", "one")
    replace(tmp_path / "codec", "two")
    assert read(tmp_path / "codec") == "two"
    assert names(tmp_path) == ["codec"]
