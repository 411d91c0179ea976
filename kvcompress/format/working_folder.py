"""Hidden folders beside an output, and locks that separate running processes from killed ones.

```
.kvcompress-<digest of the output's name>-<random>/   of a file: as many as there are processes that write it
.kvcompress-<digest of the output's name>/            of a directory: one, so one process at a time works on it
```
In each lies `lock`. The operating system gives a lock back when its holder ends, however it ends: nothing is guessed
from ages or process ids. What has no holder is swept by the next run on the same output, what a library left there of
its own too. Where there are no locks (Windows, some network file systems) nothing is swept and nobody is refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvcompress.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".kvcompress-"
"""Of every hidden name: who reads a directory passes over it."""

LOCK = "lock"
"""In every folder: who holds it owns the folder."""

_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_held: dict[Path, int] = {}
"""Directories whose one folder this process has, and the descriptors that hold the locks."""

_kept: set[Path] = set()


def hidden_name(target: Path) -> str:
    """Return how the hidden names of an output begin; one that held the output's own could be too long."""
    return PREFIX + hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]


@contextmanager
def folder_of_file(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, removed when the block ends, or by the next writer of `target`.

    Args:
        target: A file to be written; its directory exists.

    Raises:
        OSError: The folder cannot be made.
    """
    _sweep(target)
    while True:
        folder = target.parent / f"{hidden_name(target)}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            held = _try_lock(folder / LOCK)
            break
        except FileNotFoundError:  # swept before it was locked
            continue
    try:
        yield folder
    finally:
        _remove(folder, held)


@contextmanager
def sole_folder(target: Path, *, wait: bool = False) -> Iterator[Path]:
    """Give the one folder of a directory `target`; within the block no other process gets it.

    What a killed process left in it is still there. Within the block it may be asked for again and is the same.

    Args:
        target: A directory to be written, absolute and without links; its parent exists.
        wait: Wait for another process that has it.

    Raises:
        InputError: Another process has it.
        OSError: The folder cannot be made.
    """
    folder = target.parent / hidden_name(target)
    if target in _held:
        yield folder
        return
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            held = _try_lock(folder / LOCK, wait)
            break
        except FileNotFoundError:  # its last holder removed it meanwhile
            continue
    if held is None:
        raise InputError("another process is writing it", "Wait for it, or choose another name", path=target)
    _held[target] = held
    try:
        yield folder
    finally:
        del _held[target]
        if target in _kept:
            _kept.remove(target)
            os.close(held)
        else:
            _remove(folder, held)


def _forget() -> None:
    """Let a child of this process hold none of its locks: it may live longer."""
    while _held:
        os.close(_held.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def keep(target: Path) -> None:
    """Leave the folder of a directory where it is when its block ends: the next one goes on with what lies in it."""
    if target in _held:
        _kept.add(target)


def _try_lock(place: Path, wait: bool = False) -> int | None:
    """Create a file and lock it, or take it over where its holder has ended.

    Returns:
        A descriptor that holds the lock until it is closed; None where another process holds it.
    """
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed the name between our opening and locking it.
            if os.path.samestat(os.fstat(descriptor), os.stat(place)):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return descriptor
            os.close(descriptor)
            if error.errno != errno.ENOENT:
                raise


def _remove(folder: Path, held: int | None) -> None:
    """Remove a folder whose lock we hold: the lock last, so that what is left of it can be swept at any moment."""
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if entry.name != LOCK:
            remove(entry)
    if fcntl is None and held is not None:  # Windows removes no open file
        os.close(held)
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
    if fcntl is not None and held is not None:
        os.close(held)


def remove(path: Path) -> None:
    """Remove a file or a directory as far as that is possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sweep(target: Path) -> None:
    """Remove the folders that killed writers of a file left."""
    if fcntl is None:
        return
    for folder in target.parent.glob(f"{hidden_name(target)}-*"):
        with suppress(OSError):
            held = _try_lock(folder / LOCK)
            if held is not None:
                _remove(folder, held)
