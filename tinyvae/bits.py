"""Small unsigned integers packed without gaps, the lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(columns: int, bits: int) -> int:
    """Return how many bytes a row of `columns` integers of `bits` bits takes: only the last may have unused bits."""
    return -(-columns * bits // 8)


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Lay unsigned integers [N, C] below 2**bits one after another, row by row.

    Args:
        values: Any integer type of more than `bits` bits.
        bits: 1 to 8.

    Returns:
        [N, ceil(C * bits / 8)] uint8.
    """
    each = (values[..., None] >> torch.arange(bits)) & 1
    stream = each.flatten(1)
    stream = torch.cat([stream, stream.new_zeros(len(stream), -stream.shape[1] % 8)], 1)
    octets: Tensor = stream.view(len(stream), stream.shape[1] // 8, 8) << torch.arange(8)
    return octets.sum(-1).to(torch.uint8)


def unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the integers [N, columns] int16 that `pack_rows` laid down."""
    starts = torch.arange(columns) * bits
    wide = torch.cat([packed, packed.new_zeros(len(packed), 1)], 1).to(torch.int16)
    low, high = wide[:, starts // 8], wide[:, starts // 8 + 1]
    both: Tensor = (low | (high << 8)).int() >> (starts % 8)
    return both.to(torch.int16) & ((1 << bits) - 1)
