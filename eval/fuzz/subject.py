"""What a kind of file is to the fuzzer, and what all kinds share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random


class Accepted(Exception):
    """Something was read as if it were good, and is not: the worst that can happen to a reader."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of file.

    Attributes:
        name: Of the kind.
        change: Makes a case of chance.
        read: Reads it; raises `KVCompressError` where it is refused, and `Accepted` where it was taken and says
            something else than the good one does.
        intact: Nothing but these bytes may be accepted, where no checksum was made right again; empty where some may.
    """

    name: str
    change: Callable[[Random], bytes]
    read: Callable[[bytes], object]
    intact: tuple[bytes, ...] = ()


def through(path: Path, read: Callable[[Path], object], data: bytes) -> object:
    """Write a case to its place and read it from there."""
    path.write_bytes(data)
    return read(path)


def require_same(what: str, found: object, good: object) -> None:
    """Raise `Accepted` where something that was accepted differs from what the good file says."""
    if found != good:
        raise Accepted(f"{what} was changed and accepted")
