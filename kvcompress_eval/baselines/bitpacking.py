"""Codes of 1 to 8 bits, packed without gaps, and the float16 numbers that say what the codes mean.

The published quantisers keep their scales in float16. A number beyond its range would become infinity there, so every
block of scales begins with a byte that says how wide its numbers are, and a block that holds such a number is float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvcompress.errors import FormatError, InputError

Codes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]
Scales = npt.NDArray[np.float16] | npt.NDArray[np.float32]

MOST_FLOAT16 = float(np.finfo(np.float16).max)
_WIDTHS: dict[int, npt.DTypeLike] = {2: np.float16, 4: np.float32}


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` codes of `bits` bits take: the last byte may have unused bits, no other has."""
    return (count * bits + 7) // 8


def pack_bits(codes: Codes, bits: int) -> bytes:
    """Pack codes of any shape, in C order, the lowest bit first.

    Args:
        codes: uint8, each below 2**bits.
        bits: 1 to 8.

    Raises:
        InputError: A code needs more bits, or `bits` is out of range.
    """
    _require_width(bits)
    flat = np.ascontiguousarray(codes, dtype=np.uint8).ravel()
    if flat.size and int(flat.max()) >> bits:
        raise InputError(f"the code {int(flat.max())} needs more than {bits} bits")
    if bits == 8:
        return flat.tobytes()
    single = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(single, bitorder="little").tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> Codes:
    """Return `count` codes [count] uint8; the inverse of `pack_bits`.

    Raises:
        InputError: `bits` is out of range.
        FormatError: The data is not as long as so many codes are, or its unused bits are not zero.
    """
    _require_width(bits)
    if len(data) != packed_bytes(count, bits):
        raise FormatError(f"{len(data)} bytes are not {count} codes of {bits} bits")
    single = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if single[count * bits :].any():
        raise FormatError("the unused bits behind the last code are not zero")
    return np.packbits(single[: count * bits].reshape(count, bits), axis=1, bitorder="little").reshape(count)


def scale_type(*numbers: Reals) -> npt.DTypeLike:
    """Return float16, or float32 where one of these numbers is beyond float16."""
    largest = max((float(np.abs(part).max(initial=0.0)) for part in numbers), default=0.0)
    return np.float16 if largest <= MOST_FLOAT16 else np.float32


def nearest(numbers: Reals, dtype: npt.DTypeLike) -> Any:
    """Return the nearest finite numbers of `dtype`, float16 or float32."""
    limit = float(np.finfo(np.dtype(dtype)).max)
    return np.clip(numbers, -limit, limit).astype(dtype)


def rounded_down(numbers: Reals, dtype: npt.DTypeLike) -> Any:
    """Return the largest numbers of `dtype` (float16 or float32) that are not above `numbers`.

    What lies beyond the dtype, whose infinities would spread, becomes its largest or smallest number.
    """
    narrow = nearest(numbers, dtype)
    lower = np.nextafter(narrow, np.finfo(narrow.dtype).min)
    return np.where(narrow > numbers, lower, narrow)


def rounded_up(numbers: Reals, dtype: npt.DTypeLike) -> Any:
    """Return the smallest numbers of `dtype` that are not below `numbers`.

    A step that is rounded up still reaches the end of its range: nothing is ever clipped, and the error stays within
    half of the stored step even where the step is subnormal in float16.
    """
    return -rounded_down(-numbers, dtype)


def pack_scales(scales: Scales) -> bytes:
    """Return a block of scales: their width in bytes, then the numbers, little-endian, in C order."""
    little = np.ascontiguousarray(scales, dtype=scales.dtype.newbyteorder("<"))
    return bytes([scales.dtype.itemsize]) + little.tobytes()


class ByteReader:
    """Takes pieces from the front of a section, never more than there is.

    Args:
        data: The section.
        name: Its name, for errors.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name, self._offset = data, name, 0

    def take(self, size_bytes: int) -> bytes:
        """Return the next bytes."""
        end = self._offset + size_bytes
        if end > len(self._data):
            raise FormatError(f"the section {self._name!r} is cut", offset=len(self._data))
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def codes(self, shape: tuple[int, ...], bits: int) -> Codes:
        """Return the next codes, uint8 of `shape`."""
        count = int(np.prod(shape))
        return unpack_bits(self.take(packed_bytes(count, bits)), bits, count).reshape(shape)

    def scales(self, shape: tuple[int, ...]) -> Reals:
        """Return the next block of scales as float64 of `shape`."""
        width = self.take(1)[0]
        if width not in _WIDTHS:
            raise FormatError(f"the section {self._name!r} holds scales of {width} bytes", offset=self._offset - 1)
        dtype = np.dtype(_WIDTHS[width]).newbyteorder("<")
        numbers = np.frombuffer(self.take(int(np.prod(shape)) * width), dtype).astype(np.float64)
        if not np.isfinite(numbers).all():
            raise FormatError(f"the section {self._name!r} holds a scale that is not finite", offset=self._offset)
        return numbers.reshape(shape)

    def require_end(self) -> None:
        """Refuse bytes that nobody has read."""
        if self._offset != len(self._data):
            left = len(self._data) - self._offset
            raise FormatError(f"the section {self._name!r} has {left} bytes too many", offset=self._offset)


def _require_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"codes of {bits} bits cannot be packed", "Use 1 to 8 bits")
