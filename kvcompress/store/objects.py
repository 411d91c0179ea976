"""Where segments lie: immutable files named by the digest of their content, in a folder or at any fsspec address.

```
segments/ab/cdef...   BLAKE2b-256 of the content, in hexadecimal: two digits of the folder, the others of the file
```
A file appears whole or not at all, and is on the disk before `put` returns.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvcompress.errors import InputError, IntegrityError, first_line
from kvcompress.format.atomic import atomic_write, open_regular
from kvcompress.format.working_folder import PREFIX

MOST_SEGMENT_BYTES = 8 << 30
WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
"""Protocols whose objects appear whole or not at all, so that none needs a name until it is."""

_NAME = re.compile(r"[0-9a-f]{64}")


def content_digest(data: bytes, key: bytes = b"") -> str:
    """Return the BLAKE2b-256 of bytes in hexadecimal, keyed where nobody without the key may test a guess."""
    return hashlib.blake2b(data, digest_size=32, key=key).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """A file that lies there.

    Attributes:
        name: Its digest; None for what an interrupted write has left behind.
        path: Where it lies, as the folder or file system names it.
        size_bytes: Its size.
        modified: When it was written, seconds since 1970.
    """

    name: str | None
    path: str
    size_bytes: int
    modified: float


class Objects(Protocol):
    """Immutable files by digest."""

    def put(self, digest: str, data: bytes) -> int:
        """Store bytes under a digest, durably, and return how many were written: 0 where they lie there already."""
        ...

    def replace(self, digest: str, data: bytes) -> int:
        """Store bytes under a digest, durably, whatever lies there; return how many were written."""
        ...

    def get(self, digest: str, most_bytes: int = MOST_SEGMENT_BYTES) -> bytes:
        """Return the bytes of a digest; raises `InputError` where they are missing or more than `most_bytes`."""
        ...

    def size(self, digest: str) -> int | None:
        """Return the size of a file, None where there is none."""
        ...

    def delete(self, digest: str) -> None:
        """Remove a file if it is there."""
        ...

    def found(self) -> Iterator[Found]:
        """Yield every file that lies there, left-overs included."""
        ...

    def sweep(self, found: Found) -> None:
        """Remove a file that `found` named."""
        ...


class LocalObjects:
    """Files in a folder.

    Args:
        folder: It is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Return where the file of a digest lies."""
        if not _NAME.fullmatch(digest):
            raise InputError(f"{digest[:80]!r} is no digest of a segment")
        return self.folder / digest[:2] / digest[2:]

    def put(self, digest: str, data: bytes) -> int:
        """See `Objects`."""
        path = self.path(digest)
        return 0 if self._holds(path, data) else self.replace(digest, data)

    def replace(self, digest: str, data: bytes) -> int:
        """See `Objects`."""
        path = self.path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _flush_folder(self.folder)
        atomic_write(path, [data], force=True)
        return len(data)

    def _holds(self, path: Path, data: bytes) -> bool:
        """Tell whether a file holds these bytes, and see to it that it is on the disk; a damaged one is replaced."""
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size != len(data) or file.read() != data:
                    return False
                os.fsync(file.fileno())
        except OSError:
            return False
        _flush_folder(path.parent)
        return True

    def get(self, digest: str, most_bytes: int = MOST_SEGMENT_BYTES) -> bytes:
        """See `Objects`."""
        path = self.path(digest)
        with open_regular(path) as (file, size):
            if size > most_bytes:
                raise IntegrityError(f"the segment has {size} bytes, more than {most_bytes}", path=path)
            return file.read(size)  # a reader makes room for all that it is asked for before it reads

    def size(self, digest: str) -> int | None:
        """See `Objects`."""
        try:
            return self.path(digest).stat().st_size
        except OSError:
            return None

    def delete(self, digest: str) -> None:
        """See `Objects`."""
        self.path(digest).unlink(missing_ok=True)

    def found(self) -> Iterator[Found]:
        """See `Objects`."""
        for path in sorted(self.folder.glob("*/*")):
            with suppress(FileNotFoundError):
                status, name = path.stat(), path.parent.name + path.name
                known = name if _NAME.fullmatch(name) else None
                if known or path.name.startswith(PREFIX):
                    yield Found(known, str(path), status.st_size, status.st_mtime)

    def sweep(self, found: Found) -> None:
        """See `Objects`."""
        path = Path(found.path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class RemoteObjects:
    """Files at an fsspec address, such as `s3://bucket/store` or `memory://store`.

    Args:
        address: The address; what it names is a folder.
        options: Passed on to the file system.

    Raises:
        InputError: fsspec or the part that knows such addresses is not installed.
    """

    def __init__(self, address: str, **options: Any) -> None:
        try:
            import fsspec

            self.files, self.root = fsspec.core.url_to_fs(address, **options)
        except Exception as error:  # each file system has its own
            remedy = "Install it with `pip install 'kvcompress[store]'`, or `[s3]` for s3"
            raise InputError(f"the address {address!r} cannot be used ({error})", remedy) from error

    def path(self, digest: str) -> str:
        """Return where the file of a digest lies."""
        if not _NAME.fullmatch(digest):
            raise InputError(f"{digest[:80]!r} is no digest of a segment")
        return f"{self.root}/{digest[:2]}/{digest[2:]}"

    def put(self, digest: str, data: bytes) -> int:
        """See `Objects`."""
        return 0 if self.size(digest) == len(data) else self.replace(digest, data)

    def replace(self, digest: str, data: bytes) -> int:
        """See `Objects`."""
        path = self.path(digest)
        parent = path.rpartition("/")[0]
        temporary = f"{parent}/{PREFIX}{secrets.token_hex(8)}.tmp"
        names = {self.files.protocol} if isinstance(self.files.protocol, str) else set(self.files.protocol)
        with self._reached("cannot be written", path):
            if names & WHOLE_OBJECTS:
                self.files.pipe_file(path, data)
                return len(data)
            self.files.makedirs(parent, exist_ok=True)
            self.files.pipe_file(temporary, data)
            self.files.mv(temporary, path)
        return len(data)

    def get(self, digest: str, most_bytes: int = MOST_SEGMENT_BYTES) -> bytes:
        """See `Objects`."""
        path, size = self.path(digest), self.size(digest)
        if size is None:
            raise InputError("cannot be read: no such file", "Check the name", path=path)
        if size > most_bytes:
            raise IntegrityError(f"the segment has {size} bytes, more than {most_bytes}", path=path)
        with self._reached("cannot be read", path):
            return bytes(self.files.cat_file(path))

    def size(self, digest: str) -> int | None:
        """See `Objects`."""
        path = self.path(digest)
        with self._reached("cannot be read", path), suppress(FileNotFoundError):
            return int(self.files.size(path))
        return None

    def delete(self, digest: str) -> None:
        """See `Objects`."""
        path = self.path(digest)
        with self._reached("cannot be removed", path), suppress(FileNotFoundError):
            self.files.rm_file(path)

    @contextmanager
    def _reached(self, what: str, path: str) -> Iterator[None]:
        """Turn what a file system raises into one line: the address comes from the store, and may be any text."""
        try:
            yield
        except Exception as error:
            told = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise InputError(f"{what}: {told}", path=path) from error

    def found(self) -> Iterator[Found]:
        """See `Objects`."""
        with self._reached("cannot be listed", self.root):
            listed: dict[str, Any] = self.files.find(self.root, detail=True) if self.files.exists(self.root) else {}
        for path, facts in sorted(listed.items()):
            folder, _, file = path.rpartition("/")
            name = folder.rpartition("/")[2] + file
            known = name if _NAME.fullmatch(name) else None
            if known or file.startswith(PREFIX):
                yield Found(known, path, int(facts["size"]), _modified(facts))

    def sweep(self, found: Found) -> None:
        """See `Objects`."""
        with suppress(FileNotFoundError):
            self.files.rm_file(found.path)


def checked(objects: Objects, digest: str, most_bytes: int = MOST_SEGMENT_BYTES, key: bytes = b"") -> bytes:
    """Return the bytes of a digest, and only if they are those that it names.

    Raises:
        InputError: They are missing.
        IntegrityError: They were changed.
    """
    data = objects.get(digest, most_bytes)
    found = content_digest(data, key)
    if found != digest:
        what = f"the segment {digest[:16]} was changed: its content has the digest {found[:16]}"
        raise IntegrityError(what, "Fetch it again with `kvcompress store sync`, or from a copy")
    return data


def _modified(facts: dict[str, Any]) -> float:
    """Return when a file was written; file systems name it differently, and one that does not say counts as new."""
    for name in ("mtime", "LastModified", "created"):
        value = facts.get(name)
        if value is not None:
            return float(value.timestamp()) if hasattr(value, "timestamp") else float(value)
    return float("inf")


def _flush_folder(folder: Path) -> None:
    """See to it that names in a folder are on the disk; not every system can do this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
