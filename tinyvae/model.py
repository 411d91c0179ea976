"""TinyVAE: a conditional variational codec of the channels of a KV cache.

```
token_ids ──► prior ───────────────┬────────────────────────────┐
                                   ▼ -                          ▼ +
channels ────────────────────────► o ─► analyse ─► quantize     o ─► channels'
                                                      │         ▲
                                             symbols (integers) │
                                                      └─► dequantize ─► synthesise
```
The prior is subtracted before quantisation and added back after decoding: it moves the
reconstruction, never a symbol's probability. Levels, which choose the tables, are integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvae.prior import TokenPrior
from tinyvae.quantize import LEVELS, dequantize, quantize, step_at
from tinyvae.transform import Transform


@dataclass(frozen=True, slots=True)
class TinyVAEConfig:
    """Geometry of one group of layers.

    Attributes:
        channels: Keys and values of a token over the layers of the group.
        vocab_size: Number of token ids.
        rank: Number of latents.
        prior_rank: Columns of the token table.
        prior_taps: Tokens the prior looks at, the current one included.
        reference_step: Quantisation step of rate 0.
    """

    channels: int
    vocab_size: int
    rank: int
    prior_rank: int
    prior_taps: int
    reference_step: float

    def __post_init__(self) -> None:
        """Refuse impossible geometries."""
        sizes = (self.channels, self.vocab_size, self.rank, self.prior_rank, self.prior_taps)
        if min(sizes) < 1 or not self.reference_step > 0:
            raise ValueError(f"sizes and the reference step must be positive: {self}")
        if self.rank > self.channels:
            raise ValueError(f"rank {self.rank} exceeds the {self.channels} channels")


class TinyVAE(nn.Module):
    """One group of layers: prior, transform, quantiser and the integers that choose the tables.

    Attributes:
        base_level: [R] int32 level of each latent at rate 0.
        token_level: [V] int32 added for each token id: how far above or below average the
            residual of that token lies. Free side information, since the ids are known.
        centroids: [LEVELS, 2] float32: how far, in steps, the mean of bin 1 and of the bins above it
            lies below the bin's integer. Taken at the level of the latent, whatever the token.
    """

    base_level: Tensor
    token_level: Tensor
    centroids: Tensor

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.prior = TokenPrior(config.vocab_size, config.prior_rank, config.prior_taps, config.channels)
        self.transform = Transform(config.channels, config.rank)
        self.register_buffer("base_level", torch.zeros(config.rank, dtype=torch.int32))
        self.register_buffer("token_level", torch.zeros(config.vocab_size, dtype=torch.int32))
        self.register_buffer("centroids", torch.zeros(LEVELS, 2))

    def levels(self, token_ids: Tensor, rate: int) -> Tensor:
        """Return the level of every symbol, [T, R] int32, from integers alone; negative is not coded."""
        total = self.base_level + rate + self.token_level[token_ids][:, None]
        return total.clamp(-1, LEVELS - 1)

    def active_rank(self, rate: int) -> int:
        """Return how many leading latents can be coded at a rate: the others are zero for every token."""
        coded = torch.nonzero(self.base_level + rate + self.token_level.max() >= 0)
        return int(coded[-1]) + 1 if len(coded) else 0

    def analyse(self, expected: Tensor, channels: Tensor) -> Tensor:
        """Return latents [T, R] of channels [T, C] given the prior's expectation [T, C], float32."""
        return self.transform.analyse(channels - expected)

    def quantize(self, latents: Tensor, token_ids: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Return symbols and levels, both [T, r] int32, r the active rank."""
        active = self.active_rank(rate)
        levels = self.levels(token_ids, rate)[:, :active]
        return quantize(latents[:, :active], step_at(self.config.reference_step, rate), levels), levels

    def dequantize(self, symbols: Tensor, rate: int) -> Tensor:
        """Return latents [T, r] float32 of symbols [T, r] int32."""
        level = (self.base_level[: symbols.shape[1]] + rate).clamp(0, LEVELS - 1)
        return dequantize(symbols, step_at(self.config.reference_step, rate), self.centroids[level].T)

    def synthesise(self, expected: Tensor, latents: Tensor) -> Tensor:
        """Return channels [T, C] float32 from the expectation [T, C] and latents [T, r]."""
        return self.transform.synthesise(latents, expected)
