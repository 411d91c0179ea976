"""The `.kvz` file: a header that describes its content, and sections of bytes, all under checksums.

```
magic 8 | version u32 | header length u32 | header | SHA-256 of all before, 32 bytes | section 1 | section 2 | ...
```
Version 2 is written: its header is JSON under deflate, its checksums have 64 bits. Version 1, plain JSON and 128 bits,
is read as well.

Nothing but the standard library is imported here, so looking into a file takes milliseconds. What the sections mean is
the codecs' business; `docs/format.md` is the specification.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from kvcompress.errors import FormatError, InputError, IntegrityError, shown
from kvcompress.format.atomic import PathLike, atomic_write, open_regular
from kvcompress.format.header import pack_header
from kvcompress.format.header_fields import (
    CHECKSUM_CHARACTERS,
    HASH_CHARACTERS,
    MAX_HEADER_BYTES,
    PREFIX,
    VERSION,
    Header,
    parse_header,
)
from kvcompress.format.json_section import pack_origin, unpack_origin
from kvcompress.format.limits import require_memory
from kvcompress.format.positions import pack_positions, unpack_positions
from kvcompress.format.strict_json import canonical_json

MAGIC = b"\x89KVZ\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A coded snapshot in memory: what a `.kvz` file holds.

    Attributes:
        codec: Name of the codec's kind, e.g. "tinyvae" or "lossless".
        codec_fingerprint: sha256 over the codec's weights and tables ("" for codecs without weights).
        model: Model fingerprint, part -> hash (None where unknown). A file keeps the first 32 characters of each.
        model_name: A label.
        tokens: Number of tokens of the session.
        raw_bytes: Cache size at 16 bits a number.
        settings: JSON-able settings of the codec (QP, quality word, ...).
        sections: Section name -> bytes, in file order.
    """

    codec: str
    codec_fingerprint: str
    model: Mapping[str, str | None]
    model_name: str
    tokens: int
    raw_bytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = sum(map(len, self.sections.values()))
        return shown(f"Encoded({self.codec}, {self.tokens:,} tokens of {self.model_name or 'a model'}, {size:,} bytes)")

    def to_bytes(self) -> bytes:
        """Return the whole file, see `to_bytes`."""
        return to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Encoded:
        """Read a whole file from memory, see `from_bytes`."""
        return from_bytes(data)

    def save(self, path: PathLike, force: bool = False) -> None:
        """Write a `.kvz` file, see `save`."""
        save(path, self, force=force)

    @classmethod
    def load(cls, path: PathLike) -> Encoded:
        """Read a `.kvz` file, see `load`."""
        return load(path)


def to_bytes(encoded: Encoded) -> bytes:
    """Return the whole file; the same `encoded` always gives the same bytes.

    Raises:
        InputError: A field does not fit the format.
    """
    return b"".join([_head(encoded), *encoded.sections.values()])


def from_bytes(data: bytes, path: PathLike | None = None) -> Encoded:
    """Read a whole file from memory; the inverse of `to_bytes`.

    Args:
        data: The file's bytes, all of them.
        path: Named in errors.

    Raises:
        FormatError: The bytes do not follow the format.
        IntegrityError: A checksum does not match.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"a file's content is bytes, not {type(data).__name__}", "To read a file use kv.load")
    return _read(io.BytesIO(data), len(data), path)


def save(path: PathLike, encoded: Encoded, force: bool = False) -> None:
    """Write a `.kvz` file; it appears whole or not at all.

    Raises:
        InputError: The file exists and `force` is not given, it cannot be written, or a field does not fit the format.
    """
    if not isinstance(encoded, Encoded):
        what = f"save takes a path and what encode returned, not {type(path).__name__} and {type(encoded).__name__}"
        raise InputError(what, "Give the path first")
    atomic_write(path, [_head(encoded), *encoded.sections.values()], force=force)


def load(path: PathLike) -> Encoded:
    """Read a `.kvz` file and check every byte of it.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: The file does not follow the format.
        IntegrityError: A checksum does not match.
    """
    with open_regular(path) as (file, size):
        require_memory(size, "reading the file")
        return _read(file, size, path)


def verify(path: PathLike) -> Encoded:
    """Check every byte of a `.kvz` file and return its content; raises as `load` does, which checks as much."""
    return load(path)


def read_header(path: PathLike) -> Header:
    """Read what a `.kvz` file says about itself: checks the header and the file's length, leaves the sections unread.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: The header does not follow the format, or the file's length is not the one that it states.
        IntegrityError: The header's checksum does not match.
    """
    with open_regular(path) as (file, size):
        return _read_header(file, size, path)


def header_of(file: BinaryIO, size: int, path: PathLike | None = None) -> Header:
    """Read the same of an open file of `size` bytes, or of one in memory; raises as `read_header` does."""
    return _read_header(file, size, path)


def _head(encoded: Encoded) -> bytes:
    """Return everything before the sections; read back before it is used, for nobody may write what none can read."""
    header = {
        "codec": encoded.codec,
        "codec_fingerprint": encoded.codec_fingerprint,
        "model": {part: digest[:HASH_CHARACTERS] if digest else digest for part, digest in encoded.model.items()},
        "model_name": encoded.model_name,
        "tokens": encoded.tokens,
        "raw_bytes": encoded.raw_bytes,
        "settings": dict(encoded.settings),
        "sections": [
            [name, len(data), _checksum(data, CHECKSUM_CHARACTERS[VERSION])] for name, data in encoded.sections.items()
        ],
    }
    text = canonical_json(header)
    body = pack_header(text)
    header_bytes = max(len(text), len(body))
    if header_bytes > MAX_HEADER_BYTES:
        raise InputError(f"the header has {header_bytes} bytes, more than {MAX_HEADER_BYTES}", "Store less in settings")
    try:
        parse_header(body, VERSION, None)
    except FormatError as error:
        raise InputError(f"cannot be stored: {error.what}", error.remedy) from error
    head = PREFIX.pack(MAGIC, VERSION, len(body)) + body
    return head + hashlib.sha256(head).digest()


def _read(file: BinaryIO, size: int, path: PathLike | None) -> Encoded:
    """Read a file of `size` bytes. Sections are read only after their lengths were found to add up to `size`."""
    header = _read_header(file, size, path)
    sections: dict[str, bytes] = {}
    offset = header.header_bytes
    for name, size_bytes, checksum in header.sections:
        data = _take(file, size_bytes, offset, f"the section {name!r}", path)
        if _checksum(data, len(checksum)) != checksum:
            what = f"the checksum of the section {name!r} does not match"
            raise IntegrityError(what, "Copy the file again", path=path, offset=offset)
        sections[name] = data
        offset += size_bytes
    return Encoded(
        codec=header.codec,
        codec_fingerprint=header.codec_fingerprint,
        model=header.model,
        model_name=header.model_name,
        tokens=header.tokens,
        raw_bytes=header.raw_bytes,
        settings=header.settings,
        sections=sections,
    )


def is_tensors(start: bytes) -> bool:
    """Tell whether a file begins as a safetensors file does, such as a raw snapshot: a length, then JSON."""
    return start[8:9] == b"{" and start[: len(MAGIC)] != MAGIC


def _read_header(file: BinaryIO, size: int, path: PathLike | None) -> Header:
    """Read and check everything before the sections, and that the sections would end where the file ends."""
    if size == 0:
        raise FormatError("the file is empty", path=path, offset=0)
    start = file.read(PREFIX.size)
    if is_tensors(start):
        raise FormatError("this is a raw snapshot, not a .kvz file", "Encode it first", path=path, offset=0)
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise FormatError("not a .kvz file", "Name a file written by kvcompress", path=path, offset=0)
    if len(start) < PREFIX.size:
        raise _truncated("the start of the file", size, path)
    _, version, length = PREFIX.unpack(start)
    if version not in CHECKSUM_CHARACTERS:
        remedy = "Upgrade kvcompress" if version > VERSION else ""
        raise FormatError(f"version {version} of the format is not supported", remedy, path=path, offset=8)
    if length > MAX_HEADER_BYTES:
        what = f"the header claims {length} bytes, more than {MAX_HEADER_BYTES}"
        raise FormatError(what, path=path, offset=12)
    if PREFIX.size + length + 32 > size:
        raise _truncated("the header", size, path)
    body = _take(file, length, PREFIX.size, "the header", path)
    digest = _take(file, 32, PREFIX.size + length, "the header's checksum", path)
    if hashlib.sha256(start + body).digest() != digest:
        what = "the checksum of the header does not match"
        raise IntegrityError(what, "Copy the file again", path=path, offset=PREFIX.size + length)
    header = parse_header(body, version, path)
    if header.file_bytes > size:
        raise _truncated("the sections", size, path)
    if header.file_bytes < size:
        raise FormatError(f"{size - header.file_bytes} bytes follow the end", path=path, offset=header.file_bytes)
    return header


def _truncated(what: str, size: int, path: PathLike | None) -> FormatError:
    return FormatError(f"the file is cut off in {what}", "Copy the file again", path=path, offset=size)


def _take(file: BinaryIO, count: int, offset: int, what: str, path: PathLike | None) -> bytes:
    """Read exactly `count` bytes, a number already known not to exceed the file."""
    data = file.read(count)
    if len(data) != count:  # the file shrank while it was read
        raise _truncated(what, offset + len(data), path)
    return data


def _checksum(data: bytes, digits: int) -> str:
    return hashlib.sha256(data).hexdigest()[:digits]


__all__ = [
    "HASH_CHARACTERS",
    "MAGIC",
    "VERSION",
    "Encoded",
    "Header",
    "from_bytes",
    "header_of",
    "load",
    "pack_origin",
    "pack_positions",
    "read_header",
    "save",
    "to_bytes",
    "unpack_origin",
    "unpack_positions",
    "verify",
]
