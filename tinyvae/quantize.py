"""Latents to integer symbols and back: one step per QP, a dead zone, centroids.

Rates form a geometric grid, `LEVELS_PER_OCTAVE` to a factor of two of the step. A *level* says how
wide a latent is, measured in steps, on the same grid; so a finer QP raises all levels alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS_PER_OCTAVE = 16
LEVELS = 160
LOWEST_SCALE_LOG2 = -4.0
"""At level 0 the standard deviation is a sixteenth of the step; below it nothing is coded."""

DEAD_ZONE = 0.6
"""Half-width of the zero bin in steps (0.5 is plain rounding)."""


def scale_of_level(level: int) -> float:
    """Return the standard deviation, in steps, that a level stands for."""
    return float(2.0 ** (level / LEVELS_PER_OCTAVE + LOWEST_SCALE_LOG2))


def step_at(reference_step: float, qp: int) -> float:
    """Return the quantisation step of a QP (larger index, finer step)."""
    return float(reference_step * 2.0 ** (-qp / LEVELS_PER_OCTAVE))


def steps_at(reference_step: float, qps: Tensor) -> Tensor:
    """Return the quantisation steps [T, 1] float32 of QPs [T] integer, one a token."""
    return (reference_step * torch.exp2(qps.float() / -LEVELS_PER_OCTAVE))[:, None]


def quantize(latents: Tensor, step: float | Tensor, levels: Tensor) -> Tensor:
    """Round latents to symbols.

    Args:
        latents: [T, R] float32.
        step: Quantisation step, one or [T, 1] float32.
        levels: [T, R] integer; where negative the symbol is 0.

    Returns:
        [T, R] int32.
    """
    magnitude = torch.floor(latents.abs() / step + (1.0 - DEAD_ZONE))
    return torch.where(levels < 0, 0.0, torch.copysign(magnitude, latents)).to(torch.int32)


def dequantize(symbols: Tensor, step: Tensor, levels: Tensor, centroids: Tensor) -> Tensor:
    """Return the reconstruction points of symbols, [T, R] float32.

    Args:
        symbols: [T, R] int32. Most are 0 and stay 0, so only the others are looked at.
        step: [T, 1] float32 quantisation steps.
        levels: [T, R] int32.
        centroids: [LEVELS, 2] float32: how far, in steps, the mean of bin 1 (column 0) and of the bins above it
            (column 1) lies below the bin's integer.
    """
    out = torch.zeros(symbols.shape, dtype=torch.float32)
    places = symbols.flatten().nonzero()[:, 0]
    found = symbols.flatten()[places]
    magnitude = found.abs()
    bins = 2 * levels.flatten()[places].clamp(min=0) + (magnitude > 1)
    value = (magnitude - centroids.flatten()[bins]).copysign(found.float())
    rows = torch.div(places, max(symbols.shape[1], 1), rounding_mode="floor")
    out.view(-1)[places] = value * step[:, 0][rows]
    return out


def outside_bin(latents: Tensor, symbols: Tensor, step: float | Tensor) -> Tensor:
    """Return how far, in steps, latents lie outside the bins of their symbols, [T, R] float32; 0 inside.

    Args:
        latents: [T, R] float32.
        symbols: [T, R] int32.
        step: Quantisation step, one or [T, 1] float32.
    """
    scaled = torch.where(symbols < 0, -latents, latents) / step
    scaled = torch.where(symbols == 0, scaled.abs(), scaled)
    magnitude = symbols.abs()
    below = torch.where(magnitude > 0, magnitude - (1.0 - DEAD_ZONE) - scaled, 0.0)
    return torch.maximum(below, scaled - magnitude - DEAD_ZONE).clamp(min=0.0)
