"""Directories that are written and replaced atomically.

```
.kvcompress-<digest>/new       being made (`unfinished` where the next run may go on with it)
                     leaving   whole, waiting to change places with the output; a moment later, what the output was
                     old       only on systems that cannot exchange names: the output between two renames
```
Linux and macOS exchange two names in one step. Elsewhere two renames follow one another, and whoever finds the output
missing between them puts it back: `recover`. While a directory is being replaced both take room on the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kvcompress.errors import InputError
from kvcompress.format.atomic import STANDARD_STREAMS, PathLike, already_exists, refused, sync_directory
from kvcompress.format.working_folder import LOCK, PREFIX, hidden_name, keep, remove, sole_folder

UNFINISHED = "unfinished"
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_CANNOT_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def require_directory(path: PathLike, force: bool = False) -> None:
    """Refuse early, before any work is done, a directory that could not be put into its place later.

    Args:
        path: Where the directory is to appear; its parents may be missing.
        force: Whether an existing directory may be replaced.

    Raises:
        InputError: It exists and `force` is not given, something else has the name, or it cannot change places.
    """
    if os.fspath(path) in STANDARD_STREAMS:
        raise InputError("a directory is written, which standard output does not take", "Name a directory", path=path)
    try:
        if not os.path.lexists(path):
            return
        if not os.path.isdir(path):
            raise InputError("exists and is no directory", "Choose another name", path=path)
        if not force:
            sweep(path)
            raise already_exists(path)
        place = Path(os.path.realpath(path))
        if place.is_mount():
            raise InputError("is a mount point and cannot be replaced", "Name a directory inside it", path=path)
        if Path(os.path.realpath(os.curdir)).is_relative_to(place):
            remedy = "Run the command from outside it"
            raise InputError("the working directory lies inside and cannot be replaced", remedy, path=path)
    except (OSError, ValueError) as error:
        raise refused("cannot be written", error, path) from error


@contextmanager
def locked_directory(path: PathLike, *, wait: bool = False) -> Iterator[None]:
    """Let no other process write a directory within the block; the directory itself need not exist yet.

    What killed processes left beside it is swept in the end. `atomic_directory` of the same one may stand inside.

    Args:
        path: The directory.
        wait: Wait for another process that is writing it, instead of refusing.

    Raises:
        InputError: Another process is writing it, or the place is closed to us.
    """
    try:
        target = _target(path)
        recover(path)
        with sole_folder(target, wait=wait):
            yield
    except OSError as error:
        raise refused("cannot be written", error, path) from error


@contextmanager
def atomic_directory(path: PathLike, *, force: bool = False, go_on: bool = False) -> Iterator[Path]:
    """Give an empty directory beside `path`; publish it under that name when the block ends without an error.

    Whatever goes wrong, the new one is removed and an existing directory `path` keeps its content. A symbolic link
    stays one: what it points to is replaced.

    Args:
        path: Where the directory is to appear; its parents are made.
        force: Whether an existing directory may be replaced.
        go_on: Keep what is made where the block fails or the process is killed, for the next one to go on with.

    Yields:
        The new directory; with `go_on` it may hold what an earlier block made.

    Raises:
        InputError: The output exists, another process is writing it, or the operating system refused to write.
    """
    require_directory(path, force)
    try:
        target = _target(path)
        recover(path)
        with sole_folder(target) as folder:
            fresh, leaving, old = folder / (UNFINISHED if go_on else "new"), folder / "leaving", folder / "old"
            for left in (leaving, old, *(() if go_on else (fresh,))):
                remove(left)
            fresh.mkdir(exist_ok=go_on)
            try:
                yield fresh
            except BaseException:
                if go_on:
                    keep(target)
                raise
            if target.is_dir():
                shutil.copymode(target, fresh)
            _sync_tree(fresh)
            os.rename(fresh, leaving)
            _put(leaving, target, old, force)
    except OSError as error:
        raise refused("cannot be written", error, path) from error


def recover(path: PathLike) -> None:
    """Put a directory back where a process was killed between the two renames of a system that exchanges no names.

    Raises:
        InputError: It cannot be put back; nothing is lost.
    """
    target = Path(os.path.realpath(path))
    old = target.parent / hidden_name(target) / "old"
    if os.path.lexists(target) or not old.is_dir():
        return
    with sole_folder(target) as folder:
        for whole in (folder / "leaving", old):
            if whole.is_dir() and not os.path.lexists(target):
                try:
                    os.rename(whole, target)
                except OSError as error:
                    keep(target)
                    raise refused(f"cannot be put back from {whole}", error, path) from error


def sweep(path: PathLike) -> None:
    """Remove what killed processes left beside a directory, but for what the next one may go on with."""
    target = Path(os.path.realpath(path))
    if not (target.parent / hidden_name(target)).is_dir():
        return
    with suppress(InputError, OSError), sole_folder(target) as folder:
        recover(path)
        if (folder / UNFINISHED).is_dir():
            keep(target)
            for entry in folder.iterdir():
                if entry.name not in (UNFINISHED, LOCK):
                    remove(entry)


def discard(path: Path, target: PathLike) -> None:
    """Let a directory beside `target`, such as its working directory, disappear at once and not file by file."""
    if path.is_dir():
        with sole_folder(_target(target)) as folder:
            os.rename(path, folder / f"discarded-{secrets.token_hex(4)}")


def carry_over(source: Path, fresh: Path, names: Iterable[str]) -> None:
    """Let a new directory have some of what the one in its place holds, without copying bytes where that can be."""
    for entry in (source / name for name in names if not name.startswith(PREFIX)):
        if entry.is_dir() and not entry.is_symlink():
            ignored = shutil.ignore_patterns(f"{PREFIX}*")
            shutil.copytree(
                entry,
                fresh / entry.name,
                symlinks=True,
                ignore=ignored,
                copy_function=_link_or_copy,
                dirs_exist_ok=True,
            )
        else:
            _link_or_copy(str(entry), str(fresh / entry.name))


def _link_or_copy(source: str, copy: str) -> None:
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, copy, follow_symlinks=False)


def _target(path: PathLike) -> Path:
    """Return the directory meant, links followed; its parents are made."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _put(leaving: Path, target: Path, old: Path, force: bool) -> None:
    """Let a whole directory appear as `target`; what had the name is then in one of the other two places."""
    if not os.path.lexists(target):
        os.rename(leaving, target)  # refused where something with content appeared meanwhile
    elif not force:
        raise already_exists(target)
    elif not _exchange(leaving, target):
        os.rename(target, old)
        try:
            os.rename(leaving, target)
        except OSError:
            os.rename(old, target)
            raise
    sync_directory(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change what they mean, in one step; False where the system or the file system cannot do it."""
    library: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _RENAME_SWAP)
    else:
        return False
    code = ctypes.get_errno()
    if failed and code not in _CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code), str(other))
    return not failed


def _sync_tree(directory: Path) -> None:
    """Wait until all that lies in a directory is on the disk."""
    for place, _, files in os.walk(directory):
        for name in files:
            file = Path(place) / name
            if file.is_symlink():
                continue
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(place))
