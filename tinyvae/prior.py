"""What the tokens alone say about a cache, before a single bit is spent.

Expected channels at position t come from the tokens at t, t-1, ..., t-K+1 through a low-rank token table and a few
hidden units. It needs the token ids, which a session holds anyway, and costs no bits. Where the model has run its first
layers over the tokens, channels of one of these, known at t, t-1, ..., are further regressors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvae.weights import Int8Matrix


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

    The token and its predecessors are looked up in a low-rank table and mixed into a few hidden units, which one matrix
    turns into channels: a linear regression of low rank on a low-rank table.

    Args:
        vocab_size: V.
        rank: r, columns of the token table.
        taps: K, tokens looked up, the current one included.
        width: H, hidden units.
        channels: C.
        known: Channels known at no bits, C'; 0 where no layer is.
        known_taps: Tokens whose known channels are looked at, K'.

    Attributes:
        bias: [C] float32.
    """

    bias: Tensor

    def __init__(
        self, vocab_size: int, rank: int, taps: int, width: int, channels: int, known: int = 0, known_taps: int = 1
    ) -> None:
        super().__init__()
        self.taps, self.known_taps = taps, known_taps
        self.table = Int8Matrix(vocab_size, rank)
        self.inward = Int8Matrix(taps * rank + known_taps * known, width)
        self.outward = Int8Matrix(width, channels)
        self.register_buffer("bias", torch.zeros(channels))

    def features(self, token_ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the regressors [T, K r + K' C'] of token ids [T] int64 and known channels [T, C'] float32."""
        of_tokens = lagged(self.table.rows(token_ids), self.taps)
        return of_tokens if known is None else torch.cat([of_tokens, lagged(known, self.known_taps)], 1)

    def forward(self, token_ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Return expected channels [T, C] float32 for token ids [T] int64 and known channels [T, C'] float32."""
        return torch.addmm(self.bias, self.features(token_ids, known) @ self.inward.dense, self.outward.dense)

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
        known: Regressors behind those of the token table; each has a scale of its own.
    """

    ff: Tensor
    fx: Tensor
    xx: Tensor
    tokens: int = 0
    known: int = 0

    @classmethod
    def empty(cls, features: int, channels: int, known: int = 0) -> Moments:
        """Return zero moments of `features` regressors, `known` of them known channels."""
        sizes = ((features + 1, features + 1), (features + 1, channels), (channels, channels))
        ff, fx, xx = (torch.zeros(size, dtype=torch.float64) for size in sizes)
        return cls(ff, fx, xx, known=known)

    def add(self, features: Tensor, channels: Tensor) -> None:
        """Add one session: regressors [T, F] and channels [T, C], float32."""
        f = torch.cat([features, features.new_ones(len(features), 1)], 1)
        self.ff += (f.T @ f).double()
        self.fx += (f.T @ channels).double()
        self.xx += (channels.T @ channels).double()
        self.tokens += len(features)

    def solve(self, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Return weight [F, C] and bias [C] of the ridge regression, float32."""
        energy = self.ff.diagonal().clone()
        of_tokens = len(energy) - 1 - self.known
        # Columns of the token table are alike in scale; known channels are not, and a common penalty would hide some.
        energy[:of_tokens] = torch.cat([energy[:of_tokens], energy[-1:]]).mean()
        energy[-1] = 0.0  # the constant is free
        solution = torch.linalg.solve(self.ff + ridge * energy.diag(), self.fx)
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
