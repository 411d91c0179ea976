"""What latents cost as the frozen tables code them, smooth in the latents.

A latent is coded under the table of its level, and levels are fitted again after training. So what counts is how the
entropy H of the tables changes with the spread of a latent: with s the spread in steps that a level stands for, the
tangent H(s) + dH/d(s^2) (u^2 - s^2) is what latents u of that level cost to first order, wherever training moves them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvcompress.format.ans import TableBank
from tinyvae.quantize import LEVELS, LEVELS_PER_OCTAVE, scale_of_level

TAIL = 8.0
"""Where the square bends into a logarithm, in squared spreads: an escape costs bits, not squares of bits."""

BENT = 0.8621
"""Mean of the bent square of a Gaussian of spread 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Prices by level.

    Attributes:
        entropy: [LEVELS] float32, bits of a latent of that level.
        square: [LEVELS] float32, bits of a unit of its square, in steps.
        octave: [LEVELS] float32, bits that halving the step adds: near 1 for a wide latent, near 0 for a narrow one.
    """

    entropy: Tensor
    square: Tensor
    octave: Tensor

    @classmethod
    def of(cls, bank: TableBank) -> Prices:
        """Return the prices of a codec's tables."""
        probabilities = np.exp2(-bank.lengths)
        bits = np.add.reduceat(probabilities * bank.lengths, bank.offsets[:-1])
        spreads = np.array([scale_of_level(level) for level in range(LEVELS)])
        octave = np.maximum(np.gradient(bits) * LEVELS_PER_OCTAVE, 0.0)
        # d(s^2) = 2 ln 2 s^2 an octave.
        square = octave / (2 * np.log(2) * spreads**2)
        return cls(*(torch.from_numpy(part.astype(np.float32)) for part in (bits, square, octave)))

    def bits(self, residuals: Tensor, steps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return bits and the bits that halving the step would add, of each token, both [T] float32.

        Args:
            residuals: [T, R] float32, what prior and prediction leave.
            steps: [T, 1] float32 quantisation steps.
            levels: [T, R] int32; what is negative is not coded and costs nothing.
        """
        coded, index = (levels >= 0).float(), levels.clamp(min=0).long()
        spread = torch.exp2(2 * index / LEVELS_PER_OCTAVE - 8.0)  # squared, in steps
        power = (residuals / steps).square() / spread
        bent = TAIL * torch.log1p(power / TAIL) / BENT
        change = self.square[index] * spread * (bent - 1.0)
        return ((self.entropy[index] + change) * coded).sum(1), (self.octave[index] * coded).sum(1)
