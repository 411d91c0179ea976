"""Files appear whole or not at all, and every refusal of the operating system becomes one clear line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvcompress.errors import InputError
from kvcompress.format.working_folder import folder_of_file

PathLike = str | os.PathLike[str]

STANDARD_STREAMS = ("-", "/dev/stdin", "/dev/stdout", "/dev/stderr")
"""Names that mean a stream and no file; commands that write to standard output know "-" before they come here."""

_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another place",
    errno.EDQUOT: "Free some space or choose another place",
    errno.EFBIG: "Raise the limit on file sizes or choose another place",
    errno.EACCES: "Check the permissions",
    errno.EPERM: "Check the permissions",
    errno.EROFS: "Choose a place that can be written to",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def require_writable(path: PathLike, force: bool = False) -> None:
    """Refuse early, before any work is done, an output that could not be published later.

    Args:
        path: Where the output is to appear.
        force: Whether an existing file may be replaced.

    Raises:
        InputError: The file exists and `force` is not given, something other than a file has the name, or the
            directory is missing or closed to us.
    """
    if str(path_of(path, "a file")) in STANDARD_STREAMS:
        raise InputError("standard streams are not taken here", "Name a file", path=path)
    try:
        parent = Path(os.path.realpath(path) if force else path).parent
        if not parent.is_dir():
            raise InputError(f"the directory {parent} does not exist", "Create it or choose another place", path=path)
        with suppress(FileNotFoundError):
            os.lstat(path)
            if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
                raise InputError("exists and is not a regular file", "Choose another name", path=path)
            if not force:
                raise already_exists(path)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"the directory {parent} cannot be written to", "Check the permissions", path=path)
    except (OSError, ValueError) as error:
        raise refused("cannot be written", error, path) from error


@contextmanager
def atomic_path(path: PathLike, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; publish it under the name `path` when the block ends without an error.

    The block may write to the temporary path or replace it, as libraries that write by path do. Whatever goes wrong,
    the temporary file is removed and an existing file `path` keeps its content; where the process is killed, the next
    one that writes `path` removes it.

    Args:
        path: Where the output is to appear. With `force` a symbolic link is followed, so that it stays a link.
        force: Whether an existing file may be replaced.

    Yields:
        The path of an empty file in a hidden folder beside `path`, on the same file system.

    Raises:
        InputError: The output exists, or the operating system refused to write.
    """
    require_writable(path, force)
    target = Path(os.path.realpath(path)) if force else Path(path)
    try:
        with folder_of_file(target) as folder:
            temporary = folder / "file"
            mode = _reserve(temporary)
            yield temporary
            if force and target.exists():
                mode = stat.S_IMODE(target.stat().st_mode)
            _settle(temporary, mode)
            _publish(temporary, target, force, path)
    except OSError as error:
        raise refused("cannot be written", error, path) from error


def atomic_write(path: PathLike, chunks: Iterable[bytes], *, force: bool = False) -> None:
    """Write `chunks` to a temporary file, flush it to the disk and publish it under the name `path`.

    Args:
        path: Where the output is to appear.
        chunks: The content, in order; may be a generator.
        force: Whether an existing file may be replaced.

    Raises:
        InputError: The output exists, or the operating system refused to write.
    """
    with atomic_path(path, force=force) as temporary, open(temporary, "wb") as file:
        file.writelines(chunks)


def path_of(value: object, what: str) -> Path:
    """Return a path that is given as text or as such.

    Args:
        value: What was given.
        what: Names it in errors, such as "a model".

    Raises:
        InputError: It is neither.
    """
    if isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str):
        return Path(value)
    raise InputError(f"{what} is named by a text or a path, not by {type(value).__name__}", "Give its name")


@contextmanager
def open_regular(path: PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open an existing regular file for reading.

    Args:
        path: The file. Directories, pipes and devices are refused before they are opened, for opening one may block.

    Yields:
        The open file and its size in bytes.

    Raises:
        InputError: There is no such file, it is not a regular file, or it cannot be read.
    """
    try:
        status = os.stat(path_of(path, "a file"))
    except (OSError, ValueError) as error:
        raise refused("cannot be read", error, path) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"cannot be read: it is {kind}", "Name a file", path=path)
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise refused("cannot be read", error, path) from error


def _reserve(temporary: Path) -> int:
    """Create the empty temporary file and return its mode, which is what the user's umask grants."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _settle(temporary: Path, mode: int) -> None:
    """Wait until the content of the finished file is on the disk, then give it its mode."""
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    # A library may have replaced our file by one of its own that only the owner can read.
    os.chmod(temporary, mode)


def _publish(temporary: Path, target: Path, force: bool, path: PathLike) -> None:
    """Let the finished file appear as `target`; without `force`, never over a file that appeared meanwhile."""
    if force:
        os.replace(temporary, target)
    else:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise already_exists(path) from error
        except OSError:
            _claim_and_replace(temporary, target, path)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk; not every system can do this."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _claim_and_replace(temporary: Path, target: Path, path: PathLike) -> None:
    """Publish on a file system without hard links: creating the name exclusively decides who may replace it."""
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError as error:
        raise already_exists(path) from error
    try:
        os.replace(temporary, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def already_exists(path: PathLike) -> InputError:
    """Return the error that an output is there already."""
    return InputError("already exists", "Pass --force to replace it", path=path)


def refused(what: str, error: OSError | ValueError, path: PathLike) -> InputError:
    """Turn an error of the operating system (or a name it cannot express) into one line with a remedy."""
    if isinstance(error, ValueError):
        return InputError(f"{what}: {error}", "Choose another name", path=ascii(os.fspath(path)))
    remedy = _REMEDIES.get(error.errno or 0, "")
    if error.errno == errno.ENOENT:
        remedy = "Check the name"
    return InputError(f"{what}: {(error.strerror or str(error)).lower()}", remedy, path=path)
