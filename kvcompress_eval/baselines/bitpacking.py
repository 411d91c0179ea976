"""Codes of 1 to 8 bits, packed without gaps, and the float16 numbers that say what the codes mean.

The published quantisers keep their scales in float16. A number beyond its range would become infinity there, so every
block of scales begins with a byte that says how wide its numbers are, and a block that holds such a number is float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvcompress.errors import FormatError, InputError
from kvcompress.format.reader import Reader
from tinyvae.bits import pack_rows, packed_bytes, unpack_rows

Codes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]
Scales = npt.NDArray[np.float16] | npt.NDArray[np.float32]

MOST_FLOAT16 = float(np.finfo(np.float16).max)


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
    return pack_rows(torch.from_numpy(flat.astype(np.int16))[None], bits).numpy().tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> Codes:
    """Return `count` codes [count] uint8; the inverse of `pack_bits`.

    Raises:
        InputError: `bits` is out of range.
        FormatError: The data is not as long as so many codes are, or its unused bits are not zero.
    """
    _require_width(bits)
    if len(data) != packed_bytes(count, bits):
        raise FormatError(f"{len(data)} bytes are not {count} codes of {bits} bits")
    if data and data[-1] >> (8 - (8 * len(data) - count * bits)):
        raise FormatError("the unused bits behind the last code are not zero")
    packed = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    codes: Codes = unpack_rows(packed[None], bits, count)[0].numpy().astype(np.uint8)
    return codes


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


def read_codes(reader: Reader, shape: tuple[int, ...], bits: int) -> Codes:
    """Return the next codes of a section, uint8 of `shape`."""
    count = math.prod(shape)
    return unpack_bits(reader.take(packed_bytes(count, bits)), bits, count).reshape(shape)


def read_scales(reader: Reader, shape: tuple[int, ...]) -> Reals:
    """Return the next block of scales of a section as float64 of `shape`."""
    return reader.scales(math.prod(shape)).reshape(shape)


def section_reader(sections: Mapping[str, bytes], name: str) -> Reader:
    """Return a reader of a section of a file."""
    return Reader(sections[name], f"the section {name!r}")


def _require_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"codes of {bits} bits cannot be packed", "Use 1 to 8 bits")
