"""The code of one group of layers: symbols and levels of its latents and, if there is one, its residual."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcompress.codec.residual import Residual
from kvcompress.format.ans import TableBank
from tinyvae import TinyVAE
from tinyvae.quantize import steps_at


@dataclass(frozen=True, slots=True, eq=False)
class GroupCode:
    """The code of T tokens.

    Attributes:
        places: [T] int64, the positions that the group holds.
        qps: [T] int32, QP of each of these tokens.
        symbols: [T, r] int32.
        levels: [T, r] int32.
        residual: What no latent reaches, where the file has it,
        finer: and how many QPs finer than the latents it is.
        lifts: [N] int32 of all tokens of the session, see `Context`; None where no token is an outlier.
    """

    places: Tensor
    qps: Tensor
    symbols: Tensor
    levels: Tensor
    residual: Residual | None = None
    finer: int = 0
    lifts: Tensor | None = None

    def with_residual(self, vae: TinyVAE, left: Tensor, finer: int) -> GroupCode:
        """Return this code with the residual that its symbols leave, channels [T, C], so many QPs finer."""
        weighted = left * vae.transform.channel_weights
        residual = Residual.of(weighted, steps_at(vae.config.reference_step, self.qps + finer))
        return replace(self, residual=residual, finer=finer)

    def residual_channels(self, vae: TinyVAE) -> Tensor | None:
        """Return the residual as channels [T, C] float32, None where there is none."""
        if self.residual is None:
            return None
        steps = steps_at(vae.config.reference_step, self.qps + self.finer)
        return self.residual.weighted(steps, vae.centroids) / vae.transform.channel_weights.clamp(min=1e-12)

    def bits(self, bank: TableBank) -> Tensor:
        """Return the bits [T] float64 spent on each token."""
        lengths = bank.code_lengths(self.symbols.numpy(), self.levels.numpy()).sum(1)
        if self.residual is not None:
            lengths = lengths + bank.code_lengths(self.residual.symbols.numpy(), self.residual.levels.numpy()).sum(1)
        return torch.from_numpy(lengths)
