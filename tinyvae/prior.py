"""What the tokens alone say about a cache, before a single bit is spent.

The prior is linear in a low-rank token table: expected channels at position t are a constant plus
the embeddings of the tokens at t, t-1, ..., t-K+1, each through a matrix of its own (one causal
convolution). It needs the token ids, which a session holds anyway, and costs no bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def lagged(embedded: Tensor, taps: int) -> Tensor:
    """Lay each row beside its `taps - 1` predecessors; before the start there are zeros.

    Args:
        embedded: [T, r] float.
        taps: Number of lags, 0 included.

    Returns:
        [T, taps * r] float, lag 0 first.
    """
    tokens, rank = embedded.shape
    out = embedded.new_zeros(tokens, taps * rank)
    for lag in range(min(taps, tokens)):
        out[lag:, lag * rank : (lag + 1) * rank] = embedded[: tokens - lag]
    return out


class TokenPrior(nn.Module):
    """Expected channels given the token ids.

    Attributes:
        table: [V, r] bfloat16 token embeddings.
        weight: [K * r, C] bfloat16, one matrix per lag, stacked.
        bias: [C] float32.
    """

    table: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, vocab_size: int, rank: int, taps: int, channels: int) -> None:
        super().__init__()
        self.taps = taps
        self.register_buffer("table", torch.zeros(vocab_size, rank, dtype=torch.bfloat16))
        self.register_buffer("weight", torch.zeros(taps * rank, channels, dtype=torch.bfloat16))
        self.register_buffer("bias", torch.zeros(channels))

    def features(self, token_ids: Tensor) -> Tensor:
        """Return the regressors [T, K * r] of token ids [T] int64."""
        return lagged(self.table[token_ids].float(), self.taps)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return expected channels [T, C] float32 for token ids [T] int64."""
        return torch.addmm(self.bias.float(), self.features(token_ids), self.weight.float())


@dataclass(slots=True)
class TokenMeans:
    """Running sums of channels by token id, for the token table.

    Attributes:
        sums: [V, C] float32.
        counts: [V] float32.
    """

    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, vocab_size: int, channels: int) -> TokenMeans:
        """Return zero sums."""
        return cls(torch.zeros(vocab_size, channels), torch.zeros(vocab_size))

    def add(self, token_ids: Tensor, channels: Tensor) -> None:
        """Add one session: ids [T] int64 and channels [T, C] float32."""
        self.sums.index_add_(0, token_ids, channels)
        self.counts.index_add_(0, token_ids, torch.ones_like(token_ids, dtype=torch.float32))

    def table(self, rank: int, scale: Tensor, shrinkage: float = 4.0) -> Tensor:
        """Return the low-rank token table [V, rank] float32.

        Token means are shrunk towards the overall mean by their count, weighted per channel by
        `scale` [C] and by the root of their frequency, and cut to the leading singular vectors.
        """
        mean = self.sums.sum(0) / self.counts.sum().clamp(min=1)
        deviation = (self.sums - self.counts[:, None] * mean) / (self.counts[:, None] + shrinkage) * scale
        weighted = deviation * self.counts.sqrt()[:, None]
        _, vectors = torch.linalg.eigh(weighted.T @ weighted)
        basis = vectors[:, -min(rank, vectors.shape[1]) :].flip(1)
        table: Tensor = deviation @ basis
        return table / table.std(0).clamp(min=1e-8)


@dataclass(slots=True)
class Moments:
    """Second moments of regressors and channels, enough for the regression and its residual.

    Attributes:
        ff: [F + 1, F + 1] float64 sum of outer products of regressors (last one constant).
        fx: [F + 1, C] float64 cross products.
        xx: [C, C] float64 of channels.
        tokens: Number of tokens added.
    """

    ff: Tensor
    fx: Tensor
    xx: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, features: int, channels: int) -> Moments:
        """Return zero moments."""
        sizes = ((features + 1, features + 1), (features + 1, channels), (channels, channels))
        ff, fx, xx = (torch.zeros(size, dtype=torch.float64) for size in sizes)
        return cls(ff, fx, xx)

    def add(self, features: Tensor, channels: Tensor) -> None:
        """Add one session: regressors [T, F] and channels [T, C], float32."""
        f = torch.cat([features, features.new_ones(len(features), 1)], 1)
        self.ff += (f.T @ f).double()
        self.fx += (f.T @ channels).double()
        self.xx += (channels.T @ channels).double()
        self.tokens += len(features)

    def solve(self, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Return weight [F, C] and bias [C] of the ridge regression, float32."""
        penalty = ridge * self.ff.diagonal().mean() * torch.eye(len(self.ff), dtype=torch.float64)
        penalty[-1, -1] = 0.0  # the constant is free
        solution = torch.linalg.solve(self.ff + penalty, self.fx)
        return solution[:-1].float(), solution[-1].float()

    def residual_covariance(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the covariance [C, C] float64 of what the regression leaves."""
        b = torch.cat([weight, bias[None]]).double()
        cross = b.T @ self.fx
        return (self.xx - cross - cross.T + b.T @ self.ff @ b) / max(1, self.tokens)
