"""The residual of the latents: an enhancement layer for bounds that latents alone do not meet.

A group has fewer latents than channels, and what the synthesis cannot span stays in the decoded cache as error,
however fine the latents are. Where a file is to come nearer, it also holds the residual

    n = (exact - synthesised channels) * root of the metric's diagonal

in steps of a QP of its own, a symbol a channel, under the codec's frozen tables. The diagonal makes an error of one
step cost about the same in every channel. How wide a channel's residual is the file says itself, for it depends on the
session: a level a channel, an integer, so no float decides a bit.

```
u32    bytes of the levels
...    C levels + 1 as u8, deflated; 0 is not coded
...    the symbols [T, C], as in the section of latents
```
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvcompress.errors import FormatError
from kvcompress.format.ans import TableBank, decode_symbols, encode_symbols
from kvcompress.format.reader import Reader
from tinyvae.quantize import LEVELS, LEVELS_PER_OCTAVE, LOWEST_SCALE_LOG2, dequantize, quantize

RESIDUAL_FINER = 12
"""How much finer the residual is than the latents. Six sessions of 1,024 tokens: size ratio 37.7 at KL .00070 with 8,
24.4 at .00050 and 16.9 at .00024 with 16, where latents alone reach 40.0 at .00088 and never fall under .0006."""

LEAST_LEVEL = 16
"""Narrower residuals are not coded: an eighth of a step."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """The symbols of one group's residual.

    Attributes:
        symbols: [T, C] int32.
        levels: [T, C] int32, the same in every row; negative is not coded.
    """

    symbols: Tensor
    levels: Tensor

    @classmethod
    def of(cls, weighted: Tensor, steps: Tensor) -> Residual:
        """Return the symbols of a weighted residual n [T, C] float32 at steps [T, 1] float32."""
        width = (weighted / steps).double().square().mean(0).sqrt().nan_to_num().clamp(min=1e-12)
        level = (LEVELS_PER_OCTAVE * (torch.log2(width) - LOWEST_SCALE_LOG2)).round().clamp(-1, LEVELS - 1).int()
        levels = torch.where(level < LEAST_LEVEL, -1, level).expand(len(weighted), -1).contiguous()
        return cls(quantize(weighted, steps, levels), levels)

    def to_bytes(self, bank: TableBank) -> bytes:
        """Return the section."""
        level = self.levels[0] if len(self.levels) else torch.full(self.levels.shape[1:], -1)
        packed = zlib.compress((level + 1).numpy().astype(np.uint8).tobytes(), 9)
        return _LENGTH.pack(len(packed)) + packed + encode_symbols(self.symbols.numpy(), self.levels.numpy(), bank)

    @classmethod
    def from_bytes(cls, data: bytes, tokens: int, channels: int, bank: TableBank) -> Residual:
        """Read a section of T tokens and C channels.

        Raises:
            FormatError: It is cut, too long, or not of so many channels.
        """
        reader = Reader(data, "the residual")
        try:
            level = np.frombuffer(reader.inflated_block(channels), np.uint8)
        except FormatError as error:
            what = f"the residual's levels are not those of {channels} channels: {error.what}"
            raise FormatError(what) from error
        if len(level) != channels or (level > LEVELS).any():
            raise FormatError(f"the residual's levels are not those of {channels} channels", offset=reader.offset)
        levels = np.broadcast_to(level.astype(np.int32) - 1, (tokens, channels)).copy()
        symbols = decode_symbols(reader.rest(), levels, bank)
        return cls(torch.from_numpy(symbols), torch.from_numpy(levels))

    def weighted(self, steps: Tensor, centroids: Tensor) -> Tensor:
        """Return n [T, C] float32 of steps [T, 1] float32 and the codec's centroids."""
        return dequantize(self.symbols, steps, self.levels, centroids)
