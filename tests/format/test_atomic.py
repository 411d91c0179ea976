"""Law: a file appears whole or not at all; a failure leaves no trace and no harm."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcompress.errors import InputError
from kvcompress.format.atomic import atomic_path, atomic_write, require_writable
from tests.format.killed import killed_after, killed_at_call


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_file_appears_with_its_content_and_the_users_mode(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", iter([b"one", b"", b"two"]))
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode
    assert names(tmp_path) == ["a", "plain"]


def test_existing_file_is_refused_without_force_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    drawn = []
    with pytest.raises(InputError, match=r"a: already exists\. Pass --force to replace it\."):
        atomic_write(path, (drawn.append(1) or b"new" for _ in range(1)))
    with pytest.raises(InputError, match="already exists"):
        require_writable(path, False)
    assert not drawn, "the work must not begin"
    assert path.read_bytes() == b"old"


def test_force_replaces_content_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    atomic_write(path, [b"new"], force=True)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["a"]


def test_force_writes_through_a_link_and_without_it_a_dangling_link_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match="already exists"):
        atomic_write(link, [b"new"])
    atomic_write(link, [b"new"], force=True)
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.parametrize("links_work", [True, False])
def test_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links_work: bool
) -> None:
    if not links_work:
        _forbid_links(monkeypatch)
    path = tmp_path / "a"

    def chunks() -> Iterator[bytes]:
        path.write_bytes(b"theirs")
        yield b"ours"

    with pytest.raises(InputError, match="already exists"):
        atomic_write(path, chunks())
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a"]


def test_file_appears_where_hard_links_are_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_links(monkeypatch)
    atomic_write(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def _forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ZeroDivisionError()])
def test_interrupted_work_leaves_nothing_behind(tmp_path: Path, failure: BaseException, force: bool) -> None:
    path = tmp_path / "a"
    if force:
        path.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise failure

    with pytest.raises(type(failure)):
        atomic_write(path, chunks(), force=force)
    assert names(tmp_path) == (["a"] if force else [])
    assert not force or path.read_bytes() == b"old"


WRITE_TOO_MUCH = """
import resource, sys
from kvcompress.format.atomic import atomic_write
from kvcompress.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    atomic_write(sys.argv[1], (bytes(10_000) for _ in range(100)), force=True)
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
@pytest.mark.parametrize("existing", [True, False])
def test_refused_write_is_one_line_and_leaves_the_old_file(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a"
    if existing:
        path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(f"{path}: cannot be written: file too large. ")
    assert done.stdout.count("\n") == 1
    assert names(tmp_path) == (["a"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_full_disk_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a: cannot be written: no space left on device\. Free some space"):
        atomic_write(tmp_path / "a", [b"new"])
    assert names(tmp_path) == []


def test_impossible_places_are_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, what in (
        (tmp_path / "absent" / "a", "the directory .*absent does not exist"),
        (tmp_path / "file" / "a", "does not exist"),
        (tmp_path / "a\0b", "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written: file name too long"),
    ):
        for force in (True, False):
            with pytest.raises(InputError, match=what):
                atomic_write(path, [b"new"], force=force)
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="is not a regular file"):
            require_writable(path, True)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_closed_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        require_writable(tmp_path / "a")


def test_library_may_replace_the_temporary_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as temporary:
        assert temporary.parent.parent == tmp_path
        other = tmp_path / "other"
        other.write_bytes(b"new")
        other.chmod(0o600)
        other.replace(temporary)
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode
    assert names(tmp_path) == ["a", "plain"]


CALLS = [(os, name) for name in ("open", "link", "replace", "mkdir", "rmdir", "unlink", "fsync", "chmod")]


@pytest.mark.parametrize("existing", [True, False])
def test_killed_before_any_call_the_old_or_the_new_file_is_there(tmp_path: Path, existing: bool) -> None:
    path, seen = tmp_path / "a", set()
    for number in range(1000):
        path.unlink(missing_ok=True)
        if existing:
            path.write_bytes(b"old")
        if not killed_at_call(number, CALLS, lambda: atomic_write(path, [b"n", b"ew"], force=existing)):
            break
        seen.add(path.read_bytes() if path.exists() else None)
        atomic_write(path, [b"next"], force=True)
        assert names(tmp_path) == ["a"], f"left after a kill before call {number}"
    assert seen == {b"old" if existing else None, b"new"}


def test_what_a_library_left_when_it_was_killed_is_swept(tmp_path: Path) -> None:
    def work() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.with_name(".tmpOfALibrary").write_bytes(bytes(1000))
            time.sleep(60)

    assert killed_after(0.2, work)
    assert names(tmp_path) != []
    atomic_write(tmp_path / "b", [b"another"])
    assert len(names(tmp_path)) == 2, "what is of another file is its own next writer's matter"
    atomic_write(tmp_path / "a", [b"new"])
    assert names(tmp_path) == ["a", "b"]


def test_two_writers_of_one_file_do_not_sweep_each_other(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a", force=True) as ours:
        atomic_write(tmp_path / "a", [b"theirs"], force=True)
        ours.write_bytes(b"ours")
    assert (tmp_path / "a").read_bytes() == b"ours"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_file_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    for name in ("pipe", "directory", "link", "/dev/null", "."):
        with pytest.raises(InputError, match="is not a regular file"):
            atomic_write(name, [b"new"], force=force)
    for name in ("-", Path("./-"), "/dev/stdout", "/dev/stderr", "/dev/stdin"):
        with pytest.raises(InputError, match="standard streams are not taken here"):
            atomic_write(name, [b"new"], force=force)
    assert names(tmp_path) == ["directory", "link", "pipe"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        (disk / "a").write_bytes(b"old")
        with pytest.raises(InputError, match=r"a: cannot be written: no space left on device\. Free some space"):
            atomic_write(disk / "a", [bytes(200_000)], force=True)
        assert (disk / "a").read_bytes() == b"old"
        assert names(disk) == ["a"]
    finally:
        subprocess.run(["umount", disk], check=True)
