"""Blocks of principal components: how they are quantised, and which gets how many bits, by KVTC's dynamic programme.

The components, largest variance first, are cut into blocks of consecutive ones. All numbers of a block have one type,
and each token pays for a scale and a shift of the block. Where nothing is spent on the last blocks, the rank is
truncated by the same decision.

```
components   0 | 1 | 2 ........ 17 | 18 ........ 33 | 34 ........ 97 | 98 ...
bits         8   8        4               2                2             0
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvcompress_eval.baselines.bitpacking import pack_bits, unpack_bits
from tinyvae.bits import packed_bytes

Floats = npt.NDArray[np.float64]

BLOCK_SIZES = (1, 16, 64, 256, 1024)
TYPE_BITS = (0, 2, 4, 8)
OVERHEAD_BITS = 16
"""Scale and shift together, 8 bits each, for each block of each token; a block of 0 bits has none."""

SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Ranges tried for a block of integers, as a share of the distance from its least to its largest number."""

_FLOAT8 = torch.float8_e4m3fn
_LARGEST_FLOAT8 = float(torch.finfo(_FLOAT8).max)
_SCALE_ZERO, _SCALES_PER_OCTAVE = 160, 8


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive components of one type.

    Attributes:
        start: First component.
        size: Number of components.
        bits: Bits of each component; 0 leaves them at their mean.
    """

    start: int
    size: int
    bits: int


@dataclass(frozen=True, slots=True, eq=False)
class BlockCode:
    """A block of components of T tokens as it is stored.

    Attributes:
        shifts: [T] uint8, a float8 (e4m3) in the block's unit.
        scales: [T] uint8, eighths of an octave of the block's unit, 2**-20 to 2**12 of it.
        codes: [T, size] uint8: integers below 2**bits, or float8 (e4m3) where bits is 8.
    """

    shifts: Tensor
    scales: Tensor
    codes: Tensor


def quantize_block(latents: Tensor, bits: int, unit: float) -> BlockCode:
    """Quantise a block token by token between its least and its largest number.

    A block of integers tries narrower ranges too and takes for each token the one of least squared error.

    Args:
        latents: [T, size] float32.
        bits: 2 or 4 for integers, 8 for float8.
        unit: In which scales and shifts are measured.
    """
    low, high = latents.amin(1), latents.amax(1)
    if bits == 8:
        return _coded(latents, (low + high) / 2, (high - low) / 2, bits, unit)
    middle, half = (low + high) / 2, (high - low) / 2
    best, least = _coded(latents, low, high, bits, unit), torch.full_like(low, torch.inf)
    for shrink in SHRINKS:
        tried = _coded(latents, middle - shrink * half, middle + shrink * half, bits, unit)
        error = (dequantize_block(tried, bits, unit) - latents).square().sum(1)
        better = error < least
        least = torch.where(better, error, least)
        shifts, scales = torch.where(better, tried.shifts, best.shifts), torch.where(better, tried.scales, best.scales)
        best = BlockCode(shifts, scales, torch.where(better[:, None], tried.codes, best.codes))
    return best


def dequantize_block(code: BlockCode, bits: int, unit: float) -> Tensor:
    """Return the latents [T, size] float32 of a block."""
    shifts, scales = _shift_values(code.shifts, unit), _scale_values(code.scales, unit)
    codes = code.codes.view(_FLOAT8).float() if bits == 8 else code.codes.float()
    return shifts[:, None] + scales[:, None] * codes


def _coded(latents: Tensor, first: Tensor, last: Tensor, bits: int, unit: float) -> BlockCode:
    """Code a block from `first` to `last` [T] (integers), or around `first` up to `last` away from it (float8)."""
    shifts = (first / unit).clamp(-_LARGEST_FLOAT8, _LARGEST_FLOAT8).to(_FLOAT8).view(torch.uint8)
    shift = _shift_values(shifts, unit)
    reach = (latents - shift[:, None]).abs().amax(1) if bits == 8 else last - shift
    span = reach / (_LARGEST_FLOAT8 if bits == 8 else 2**bits - 1)
    # The scale is rounded before it is used, and up for float8, whose largest number must not be passed.
    octaves = torch.log2((span / unit).clamp(min=2.0**-30)) * _SCALES_PER_OCTAVE
    scales = ((octaves.ceil() if bits == 8 else octaves.round()) + _SCALE_ZERO).clamp(0, 255).to(torch.uint8)
    scaled = (latents - shift[:, None]) / _scale_values(scales, unit)[:, None]
    if bits == 8:
        codes = scaled.clamp(-_LARGEST_FLOAT8, _LARGEST_FLOAT8).to(_FLOAT8).view(torch.uint8)
    else:
        codes = scaled.round().clamp(0, 2**bits - 1).to(torch.uint8)
    return BlockCode(shifts, scales, codes)


def _shift_values(shifts: Tensor, unit: float) -> Tensor:
    return shifts.view(_FLOAT8).float() * unit


def _scale_values(scales: Tensor, unit: float) -> Tensor:
    return torch.exp2((scales.float() - _SCALE_ZERO) / _SCALES_PER_OCTAVE) * unit


def block_bytes(block: Block, tokens: int) -> int:
    """Return the bytes of a packed block."""
    return 2 * tokens + packed_bytes(tokens * block.size, block.bits)


def pack_block(latents: Tensor, block: Block, unit: float) -> bytes:
    """Return shifts, scales and codes of a block of latents [T, R]; each kind together, which DEFLATE likes."""
    if not len(latents):
        return b""
    code = quantize_block(latents[:, block.start : block.start + block.size], block.bits, unit)
    head = torch.cat([code.shifts, code.scales]).numpy().tobytes()
    return head + pack_bits(code.codes.numpy(), block.bits)


def unpack_block(data: bytes, block: Block, unit: float, tokens: int) -> Tensor:
    """Return the latents [tokens, size] of a block: the inverse of `pack_block`."""
    if not tokens:
        return torch.zeros(0, block.size)
    head = torch.frombuffer(bytearray(data[: 2 * tokens]), dtype=torch.uint8)
    codes = unpack_bits(data[2 * tokens :], block.bits, tokens * block.size)
    code = BlockCode(head[:tokens], head[tokens:], torch.from_numpy(codes.copy()).view(tokens, block.size))
    return dequantize_block(code, block.bits, unit)


def block_unit(latents: Tensor) -> float:
    """Return the unit of a block: the root mean square of its latents [S, size] in calibration."""
    return max(float(latents.square().mean().sqrt()), 1e-6)


def measured_distortions(latents: Tensor, block_sizes: Sequence[int] = BLOCK_SIZES) -> dict[tuple[int, int], Floats]:
    """Quantise every possible block and return its mean squared error, summed over the block.

    Args:
        latents: [S, R] float32 of sampled tokens.
        block_sizes: Sizes to try; those above R are left out.

    Returns:
        (size, bits) -> [R - size + 1] float64, by first component: what `solve` takes.
    """
    tokens, components = latents.shape
    energy = np.concatenate([[0.0], latents.square().double().mean(0).cumsum(0).numpy()])
    found: dict[tuple[int, int], Floats] = {}
    for size in (size for size in block_sizes if size <= components):
        starts = components - size + 1
        found[size, 0] = energy[size:] - energy[:-size]
        for bits in TYPE_BITS[1:]:
            errors = np.empty(starts)
            for start in range(starts):
                block = latents[:, start : start + size]
                unit = block_unit(block)
                missed = dequantize_block(quantize_block(block, bits, unit), bits, unit) - block
                errors[start] = float(missed.square().sum()) / tokens
            found[size, bits] = errors
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """The best distortion of every budget, and how to get there.

    Attributes:
        best: [units + 1] float64, least distortion of all components with at most so many units of bits.
        unit_bits: Bits of a unit: all costs are multiples of it.
        choices: [components + 1, units + 1] int16, the last block's index into `options`.
        options: (size, bits, units) of each kind of block.
    """

    best: Floats
    unit_bits: int
    choices: npt.NDArray[np.int16]
    options: tuple[tuple[int, int, int], ...]

    def blocks(self, budget_bits: int) -> list[Block]:
        """Return the best blocks that cost at most `budget_bits` a token."""
        end, left = len(self.choices) - 1, min(budget_bits // self.unit_bits, len(self.best) - 1)
        found: list[Block] = []
        while end:
            size, bits, units = self.options[self.choices[end, left]]
            end, left = end - size, left - units
            found.append(Block(end, size, bits))
        return found[::-1]


def cost_bits(size: int, bits: int, overhead_bits: int = OVERHEAD_BITS) -> int:
    """Return the bits that a block costs each token."""
    return size * bits + overhead_bits if bits else 0


def total_bits(blocks: Sequence[Block], overhead_bits: int = OVERHEAD_BITS) -> int:
    """Return the bits that all blocks cost each token."""
    return sum(cost_bits(block.size, block.bits, overhead_bits) for block in blocks)


def solve(
    distortions: Mapping[tuple[int, int], Floats], budget_bits: int, overhead_bits: int = OVERHEAD_BITS
) -> Allocation:
    """Find the cut into blocks of least total distortion, for every budget up to `budget_bits`.

    Time is components times budget times kinds of block, memory components times budget.

    Args:
        distortions: (size, bits) -> [starts] float64: the squared error of a block of `size` components that begins at
            each of the first `starts` components. Size 1 with 0 bits must be among them, so that there is always a way.
        budget_bits: Bits of one token, scales and shifts included.
        overhead_bits: Bits of scale and shift of a block.
    """
    components = len(distortions[1, 0])
    kinds = sorted(distortions)
    costs = [cost_bits(size, bits, overhead_bits) for size, bits in kinds]
    unit = math.gcd(*costs) or 1
    units = budget_bits // unit
    options = tuple((size, bits, cost // unit) for (size, bits), cost in zip(kinds, costs, strict=True))
    best = np.full((components + 1, units + 1), np.inf)
    best[0] = 0.0
    choices = np.zeros((components + 1, units + 1), dtype=np.int16)
    for end in range(1, components + 1):
        for index, (size, bits, cost) in enumerate(options):
            if size > end or cost > units or end - size >= len(distortions[size, bits]):
                continue
            reached = best[end - size, : units + 1 - cost] + distortions[size, bits][end - size]
            better = reached < best[end, cost:]
            best[end, cost:][better] = reached[better]
            choices[end, cost:][better] = index
    return Allocation(best[-1], unit, choices, options)


def split_budget(first: Allocation, second: Allocation, budget_bits: int) -> tuple[list[Block], list[Block]]:
    """Divide one budget between two sets of components so that the sum of their distortions is least.

    Both must have been solved for `budget_bits` or more.
    """
    unit = math.lcm(first.unit_bits, second.unit_bits)
    shares = np.arange(budget_bits // unit + 1)
    ours = first.best[shares * (unit // first.unit_bits)]
    theirs = second.best[shares[::-1] * (unit // second.unit_bits)]
    share = int(np.argmin(ours + theirs)) * unit
    return first.blocks(share), second.blocks(budget_bits // unit * unit - share)
