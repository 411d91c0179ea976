"""The nonlinear part of analysis and synthesis: prediction from decoded tokens and the prior.

One weight a latent and source (`TinyVAE.weights`) says how much of a neighbour is expected again. How much is true
depends on what the token is and on what else the neighbours say; a gated linear unit (Shazeer, arXiv 2002.05202) of
both learns that. Its guess is subtracted from the latents after the linear analysis and added back before the linear
synthesis, so it is part of both, and it fills in what no symbol carries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyvae.neighbours import CODING_PASSES, MATCHES, SOURCES, CodingPass
from tinyvae.quantize import LEVELS_PER_OCTAVE
from tinyvae.weights import StoredMatrix

SOURCE_LATENTS = 48
"""Leading latents looked at of each source,"""

EXPECTED_LATENTS = 96
"""of what the prior expects of the token itself,"""

PREDICTED_LATENTS = 192
"""and those guessed: further ones are too narrow to gain from it."""

LOWEST_TOLD, HIGHEST_TOLD = -48, 120
"""Rates beyond these look like these: a token that is not coded at all has a QP no training saw."""

_FLAGS = 1 + MATCHES + CODING_PASSES - 1


class Predictor(nn.Module):
    """Guesses the leading latents of tokens that have decoded neighbours.

    Args:
        rank: Latents of the group.
        width: Hidden units.
    """

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        self.sources, self.expected = min(SOURCE_LATENTS, rank), min(EXPECTED_LATENTS, rank)
        self.guessed = min(PREDICTED_LATENTS, rank)
        self.inward = StoredMatrix(SOURCES * self.sources + self.expected + _FLAGS, 2 * width, 4)
        self.outward = StoredMatrix(width, self.guessed, 4)

    def start(self, generator: torch.Generator) -> None:
        """Draw the first matrix at random and leave the second at 0: a fresh predictor guesses nothing."""
        rows, columns = len(self.inward.scales), self.inward.columns
        self.inward.store(torch.randn(rows, columns, generator=generator, dtype=torch.float32) / rows**0.5)
        self.silence()

    def silence(self) -> None:
        """Make all guesses 0."""
        self.outward.store(torch.zeros(len(self.outward.scales), self.guessed, dtype=torch.float32))

    def begin_training(self) -> None:
        """Give both matrices float32 parameters."""
        self.inward.begin_training()
        self.outward.begin_training()

    def end_training(self) -> None:
        """Keep what was trained."""
        self.inward.end_training()
        self.outward.end_training()

    def forward(self, sources: Tensor, expected: Tensor, qps: Tensor, coding_pass: CodingPass) -> Tensor:
        """Return guesses [N, G] float32 for the N tokens of a coding pass, in the unit of the inputs.

        Args:
            sources: [SOURCES, N, S] float32 leading latents decoded of each source, of about unit spread.
            expected: [N, E] float32 leading latents of the prior's expectation.
            qps: [N] int32 QP of each token: a coarse neighbour says less.
            coding_pass: The coding pass, not the first.
        """
        flags = expected.new_zeros(len(expected), _FLAGS)
        flags[:, 0] = qps.clamp(LOWEST_TOLD, HIGHEST_TOLD) / (4 * LEVELS_PER_OCTAVE)
        flags[:, 1 : 1 + MATCHES] = functional.one_hot(coding_pass.matches, MATCHES)
        flags[:, MATCHES + coding_pass.number] = 1.0
        inputs = torch.cat([*sources, expected, flags], 1)
        hidden, gate = (inputs @ self.inward.dense).chunk(2, 1)
        return (functional.gelu(hidden) * gate) @ self.outward.dense
