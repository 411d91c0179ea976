"""The one way in which a portable file is written as a zip: what a zip could say beside its members, it does not say.

Times, attributes and versions are fixed, members lie behind one another from the first byte on, and the list of members
follows the last one. So no byte of the file is left that may change unnoticed, and none that holds something else.
"""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

from kvcompress.errors import FormatError

DATE = (1980, 1, 1, 0, 0, 0)
UNIX, ATTRIBUTES = 3, 0o600 << 16
LOCAL_BYTES, DIRECTORY_BYTES = 30, 46

_LOCAL, _ENTRY = struct.Struct("<4s2B4HL2L2H"), struct.Struct("<4s4B4HL2L5H2L")
_DOS_DATE = 1 << 5 | 1
_PLAIN, _LARGE = 20, 45
_LARGEST = 0xFFFFFFFF


def member(name: str) -> zipfile.ZipInfo:
    """Return a member that says nothing of when and where it was written, so that equal sessions give equal files."""
    found = zipfile.ZipInfo(name, DATE)
    found.create_system, found.external_attr = UNIX, ATTRIBUTES
    return found


def require_form(file: BinaryIO, members: list[zipfile.ZipInfo], start: int, length: int) -> None:
    """Refuse a zip that is not written in the one way.

    Args:
        file: The file.
        members: As its directory lists them.
        start: Where the directory starts.
        length: Its length in bytes.

    Raises:
        FormatError: It is not.
    """
    free, listed = 0, list[bytes]()
    for one in members:
        name, large, extra = one.orig_filename.encode(), one.file_size * 1.05 > zipfile.ZIP64_LIMIT, _extra(one)
        header = _local(one, name, large)
        file.seek(one.header_offset)
        if one.header_offset != free or file.read(len(header)) != header:
            what = f"{one.orig_filename[:80]!r} does not lie in the file as it was exported"
            raise FormatError(what, "Export the session again")
        free += len(header) + one.file_size
        listed.append(_entry(one, name, extra, _LARGE if large or extra else _PLAIN))
    file.seek(start)
    if free != start or file.read(length) != b"".join(listed):  # what a library makes of it may hide some of it
        raise FormatError("the list of the file's members is not as it was exported", "Export the session again")


def _entry(one: zipfile.ZipInfo, name: bytes, extra: bytes, version: int) -> bytes:
    """Return what the directory says of a member."""
    size, place = (
        number if number <= zipfile.ZIP64_LIMIT else _LARGEST for number in (one.file_size, one.header_offset)
    )
    made = (b"PK\x01\x02", version, UNIX, version, 0, 0, 0, 0, _DOS_DATE, one.CRC, size, size)
    return _ENTRY.pack(*made, len(name), len(extra), 0, 0, 0, ATTRIBUTES, place) + name + extra


def _local(one: zipfile.ZipInfo, name: bytes, large: bool) -> bytes:
    """Return what stands before a member."""
    size, extra, version = one.file_size, b"", _PLAIN
    if large:
        size, extra, version = _LARGEST, struct.pack("<HHQQ", 1, 16, one.file_size, one.file_size), _LARGE
    head = (b"PK\x03\x04", version, 0, 0, 0, 0, _DOS_DATE, one.CRC, size, size, len(name), len(extra))
    return _LOCAL.pack(*head) + name + extra


def _extra(one: zipfile.ZipInfo) -> bytes:
    """Return what the directory says of a member beside its fields: numbers that do not fit them."""
    size = [one.file_size] * 2 if one.file_size > zipfile.ZIP64_LIMIT else []
    numbers = [*size, *([one.header_offset] if one.header_offset > zipfile.ZIP64_LIMIT else [])]
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
