"""A bounded reader that takes a section of bytes apart from the front.

A count that a section states is compared with the bytes that are left before anything is made of it. So no reader on
top of this one allocates by a number that it has only read.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from kvcompress.errors import FormatError
from kvcompress.format.inflate import inflated
from kvcompress.format.zstd_frame import zstd_unpack

_U8, _U32 = struct.Struct("<B"), struct.Struct("<I")


class Reader:
    """Takes pieces from the front of a section.

    Args:
        data: The section.
        what: Names it in errors, such as "the section 'cache'".

    Attributes:
        offset: How many bytes were taken.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what, self.offset = data, what, 0

    @property
    def left(self) -> int:
        """How many bytes were not taken yet."""
        return len(self._data) - self.offset

    def take(self, size_bytes: int) -> bytes:
        """Return the next bytes; raises `FormatError` where there are fewer."""
        if not 0 <= size_bytes <= self.left:
            what = f"{self._what} is cut: it ends at byte {len(self._data)}, in the middle of its data"
            raise FormatError(what, offset=self.offset)
        self.offset += size_bytes
        return self._data[self.offset - size_bytes : self.offset]

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(self.left)

    def fields(self, fields: struct.Struct) -> tuple[int, ...]:
        """Return the next integers."""
        return fields.unpack(self.take(fields.size))

    def u8(self) -> int:
        """Return the next byte."""
        return self.fields(_U8)[0]

    def u32(self) -> int:
        """Return the next 32-bit integer, little-endian."""
        return self.fields(_U32)[0]

    def numbers(self, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
        """Return the next numbers [count], a view of the section.

        Args:
            dtype: With its byte order, such as "<f2".
            count: How many; compared with what is left before anything is made of it.
        """
        kind = np.dtype(dtype)
        if count > self.left // kind.itemsize:
            self.take(self.left + 1)
        return np.frombuffer(self.take(count * kind.itemsize), kind)

    def scales(self, count: int, *, signed: bool = True) -> npt.NDArray[np.float64]:
        """Return the next block of scales [count] as float64: a byte, 2 or 4, then so many float16 or float32.

        Raises:
            FormatError: The block is cut, of another width, or holds a number that is not finite or, where they may not
                be `signed`, has a sign.
        """
        start, width = self.offset, self.u8()
        if width not in (2, 4):
            raise FormatError(f"{self._what} holds scales of {width} bytes, neither 2 nor 4", offset=start)
        found = self.numbers(f"<f{width}", count)
        if not np.isfinite(found).all() or not (signed or not np.signbit(found).any()):
            kind = "not finite" if signed else "negative or not finite"
            raise FormatError(f"{self._what} holds a scale that is {kind}", offset=start)
        return found.astype(np.float64)

    def block(self) -> bytes:
        """Return the next bytes whose number, u32, stands before them."""
        return self.take(self.u32())

    def inflated_block(self, most_bytes: int) -> bytes:
        """Return what the next block, a zlib stream of at most `most_bytes`, holds."""
        return inflated(self.block(), most_bytes, self._what, zlib.decompressobj())

    def frame(self, length: struct.Struct, content_bytes: int) -> bytes:
        """Return the content of the next zstd frame, whose length stands before it; it must be so many bytes."""
        (size,) = self.fields(length)
        content = zstd_unpack(self.take(size), content_bytes, self._what)
        if len(content) != content_bytes:
            raise FormatError(f"{self._what} has a plane of {len(content)} bytes instead of {content_bytes}")
        return content

    def require_end(self) -> None:
        """Refuse bytes that nobody has read."""
        if self.left:
            raise FormatError(f"{self._what} has {self.left} bytes too many", offset=self.offset)
