"""What the tokens alone say about a cache, before a single bit is spent.

Expected channels at position t come from the tokens at t, t-1, ..., t-K+1 through a low-rank token table and a few
hidden units, which learned causal layers may refine. It needs the token ids, which a session holds anyway, and costs
no bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyvae.weights import RankedMatrix, StoredMatrix, as_buffer, as_parameter

BLOCK_TAPS = 8
SHARP_COLUMNS = 16
SHARP_UNITS = 32


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


class CausalBlock(nn.Module):
    """A residual layer that looks at a token and its predecessors: a convolution a channel, then two matrices.

    h_t + gelu([h_t, sum_k w_k * h_{t-k}] U) V: the learned part of the prior. V starts at 0, so a fresh block changes
    nothing.

    Args:
        width: H, hidden units.
        taps: K, tokens looked at, the current one not included.

    Attributes:
        kernel: [K, H] float16, or the float32 parameter in its place while in training.
    """

    kernel: Tensor

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((taps, width), 1.0 / taps, dtype=torch.float16))
        self.inward, self.outward = StoredMatrix(2 * width, width, 4), StoredMatrix(width, width, 4)

    def start(self, generator: torch.Generator) -> None:
        """Draw the first matrix at random and leave the second at 0."""
        rows = 2 * self.outward.columns
        self.inward.store(torch.randn(rows, self.outward.columns, generator=generator) / rows**0.5)
        self.outward.store(torch.zeros(self.outward.columns, self.outward.columns))

    def begin_training(self) -> None:
        """Give kernel and matrices float32 parameters."""
        as_parameter(self, "kernel")
        self.inward.begin_training()
        self.outward.begin_training()

    def end_training(self) -> None:
        """Keep what was trained."""
        as_buffer(self, "kernel", torch.float16)
        self.inward.end_training()
        self.outward.end_training()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden units [T, H] float32 to hidden units."""
        kernel, past = self.kernel.float(), torch.zeros_like(hidden)
        for lag in range(1, min(len(kernel), len(hidden) - 1) + 1):
            past[lag:] = past[lag:] + kernel[lag - 1] * hidden[:-lag]
        return hidden + functional.gelu(torch.cat([hidden, past], 1) @ self.inward.dense) @ self.outward.dense


class TokenTable(nn.Module):
    """A row for each token id: its leading columns, which tell most, in 8 bits, the others in 4.

    Args:
        vocab_size: V.
        rank: r, columns.
    """

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.rank, self.sharp_columns = rank, min(rank, SHARP_COLUMNS)
        self.sharp = StoredMatrix(vocab_size, self.sharp_columns, 8)
        self.rest = StoredMatrix(vocab_size, rank - self.sharp_columns, 4)

    def rows(self, token_ids: Tensor) -> Tensor:
        """Return the rows [T, r] float32 of token ids [T] int64."""
        return torch.cat([self.sharp.rows(token_ids), self.rest.rows(token_ids)], 1)

    def store(self, table: Tensor) -> None:
        """Keep a table [V, r]."""
        self.sharp.store(table[:, : self.sharp_columns])
        self.rest.store(table[:, self.sharp_columns :])

    def begin_training(self) -> None:
        """Give both parts float32 parameters."""
        self.sharp.begin_training()
        self.rest.begin_training()

    def end_training(self) -> None:
        """Keep what was trained."""
        self.sharp.end_training()
        self.rest.end_training()


class TokenPrior(nn.Module):
    """Expected channels given the token ids.

    The token and its predecessors are looked up in a low-rank table and mixed into a few hidden units (a linear
    regression of low rank on a low-rank table, which closed forms can fit), causal layers may follow, and one matrix
    turns hidden units into channels.

    Args:
        vocab_size: V.
        rank: r, columns of the token table.
        taps: K, tokens looked up, the current one included.
        width: H, hidden units.
        channels: C.
        layers: Causal layers, learned; 0 for a prior in closed form.

    Attributes:
        bias: [C] float32.
    """

    bias: Tensor

    def __init__(self, vocab_size: int, rank: int, taps: int, width: int, channels: int, layers: int = 0) -> None:
        super().__init__()
        self.taps = taps
        self.table = TokenTable(vocab_size, rank)
        self.inward = StoredMatrix(taps * rank, width, 6)
        self.blocks = nn.ModuleList(CausalBlock(width, BLOCK_TAPS) for _ in range(layers))
        self.outward = RankedMatrix(width, channels, SHARP_UNITS)
        self.register_buffer("bias", torch.zeros(channels))

    def begin_training(self) -> None:
        """Give all matrices float32 parameters."""
        as_parameter(self, "bias")
        for part in (self.table, self.inward, self.outward, *self.blocks):
            part.begin_training()

    def end_training(self) -> None:
        """Keep what was trained."""
        as_buffer(self, "bias", torch.float32)
        for part in (self.table, self.inward, self.outward, *self.blocks):
            part.end_training()

    def features(self, token_ids: Tensor) -> Tensor:
        """Return the regressors [T, K * r] of token ids [T] int64."""
        return lagged(self.table.rows(token_ids), self.taps)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return expected channels [T, C] float32 for token ids [T] int64."""
        hidden = self.features(token_ids) @ self.inward.dense
        for block in self.blocks:
            hidden = block(hidden)
        return torch.addmm(self.bias, hidden, self.outward.dense)

    @torch.no_grad()
    def store(self, inward: Tensor, outward: Tensor) -> None:
        """Keep what `Moments.factored` found."""
        self.inward.store(inward)
        self.outward.store(outward)


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

    def factored(self, metric: Tensor, width: int, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Return inward [F, H] and outward [H, C], float32: the regression of rank H (Izenman 1975).

        Of all matrices of that rank their product leaves the least error in the metric.

        Args:
            metric: [C, C] float64 positive definite, the weight of the squared error.
            width: H.
            ridge: Penalty of the regression.
        """
        weight, _ = self.solve(ridge)
        centred = self.ff[:-1, :-1] - torch.outer(self.ff[:-1, -1], self.ff[-1, :-1]) / max(1.0, float(self.ff[-1, -1]))
        fitted = weight.double().T @ centred @ weight.double()
        values, vectors = torch.linalg.eigh(metric)
        root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
        _, basis = torch.linalg.eigh(root @ fitted @ root)
        basis = basis[:, -width:].flip(1)
        return (weight.double() @ (root @ basis)).float(), (basis.T @ inverse).float()

    def constant(self, weight: Tensor) -> Tensor:
        """Return the bias [C] float32 that leaves no mean error beside a weight [F, C]."""
        count = max(1.0, float(self.ff[-1, -1]))
        return ((self.fx[-1] - self.ff[-1, :-1] @ weight.double()) / count).float()

    def residual_covariance(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the covariance [C, C] float64 of what the regression leaves."""
        b = torch.cat([weight, bias[None]]).double()
        cross = b.T @ self.fx
        return (self.xx - cross - cross.T + b.T @ self.ff @ b) / max(1, self.tokens)
