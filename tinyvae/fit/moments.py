"""Second moments for closed-form fits: token means, and regressors with channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.transform import Metric, eigenvectors


@dataclass(slots=True)
class TokenMeans:
    """Running sums of rows by token id, for the token table; only ids that were seen take memory.

    Attributes:
        ids: [n] int64, ascending: the ids that occur.
        sums: [n, C] float32.
        counts: [n] float32.
    """

    ids: Tensor
    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, ids: Tensor, width: int) -> TokenMeans:
        """Return zero sums of rows of `width` numbers for token ids [n] int64, ascending."""
        return cls(ids, torch.zeros(len(ids), width, dtype=torch.float32), torch.zeros(len(ids), dtype=torch.float32))

    def add(self, token_ids: Tensor, rows: Tensor) -> None:
        """Add one session: ids [T] int64 and rows [T, C] float32."""
        index = torch.searchsorted(self.ids, token_ids)
        self.sums.index_add_(0, index, rows)
        self.counts.index_add_(0, index, torch.ones_like(token_ids, dtype=torch.float32))

    def table(self, vocab_size: int, rank: int, scale: Tensor, shrinkage: float = 4.0) -> Tensor:
        """Return the low-rank token table [V, rank] float32; ids that were not seen have the mean, 0.

        Token means are shrunk towards the overall mean by their count, weighted per column by
        `scale` [C] and by the root of their frequency, and cut to the leading singular vectors.
        """
        mean = self.sums.sum(0) / self.counts.sum().clamp(min=1)
        deviation = (self.sums - self.counts[:, None] * mean) / (self.counts[:, None] + shrinkage) * scale
        weighted = deviation * self.counts.sqrt()[:, None]
        _, vectors = torch.linalg.eigh(weighted.T @ weighted)
        basis = vectors[:, -min(rank, vectors.shape[1]) :].flip(1)
        table = torch.zeros(vocab_size, basis.shape[1], dtype=torch.float32).index_copy_(0, self.ids, deviation @ basis)
        return table / table.std(0).clamp(min=1e-8)


PANEL = 640
"""Columns of a Gram matrix that are added at a time: wide enough for a full product, and few enough to spare half."""


@dataclass(slots=True)
class Gram:
    """Running sum of outer products of rows. It is symmetric, so only the panels on and above the diagonal are added.

    Attributes:
        upper: [C, C] float64; below the panels on the diagonal it is 0.
    """

    upper: Tensor

    @classmethod
    def empty(cls, size: int) -> Gram:
        """Return the sum of no rows of `size` numbers."""
        return cls(torch.zeros(size, size, dtype=torch.float64))

    def __len__(self) -> int:
        """Return C."""
        return len(self.upper)

    def add(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add rows [T, C] float32 with a common weight; the products are taken in float32, the sum in float64."""
        for start in range(0, len(self), PANEL):
            product = rows[:, start : start + PANEL].T @ rows[:, start:]
            self.upper[start : start + PANEL, start:].add_(product, alpha=weight)

    def matrix(self) -> Tensor:
        """Return the whole sum, [C, C] float64."""
        triangle = self.upper.triu()
        return triangle + triangle.triu(1).T


@dataclass(slots=True)
class Coherence:
    """How far gradients of the tokens of a session point the same way, block by block of channels.

    Where attention is spread over all tokens an error that they share adds up, and independent ones cancel. The Fisher
    matrix of single tokens knows nothing of it. With gradients g_t of T tokens the ratio |sum g_t|^2 / sum |g_t|^2 is 1
    where they are independent and T where they are equal: 1 to 10 in most heads of SmolLM2-135M, and 280 to 580 in the
    values of its first layer, whose truncation alone cost .0009 nats of .0021.

    Attributes:
        blocks: Sizes of the blocks, which add up to C.
        single: [blocks] float64 sums of |g_t|^2.
        common: [blocks] float64 sums of |sum g_t|^2.
    """

    blocks: tuple[int, ...]
    single: Tensor
    common: Tensor

    @classmethod
    def empty(cls, blocks: Sequence[int]) -> Coherence:
        """Return that of no gradients."""
        zeros = torch.zeros(len(blocks), dtype=torch.float64)
        return cls(tuple(blocks), zeros, zeros.clone())

    def add(self, gradients: Tensor) -> None:
        """Add those of one session, [T, C] float32."""
        for sums, energies in ((self.single, gradients.square().sum(0)), (self.common, gradients.sum(0).square())):
            sums += torch.stack([part.double().sum() for part in torch.split(energies, list(self.blocks))])

    def scale(self, share: float) -> Tensor:
        """Return what multiplies each channel of the gradients, [C] float64, if a share of an error's energy is common.

        Errors e_t then cost, on average, sum |g_t|^2 of their own and the share times |sum g_t|^2 together.
        """
        ratio = self.common / self.single.clamp(min=1e-30)
        return (1 + share * ratio).sqrt().repeat_interleave(torch.tensor(self.blocks))


@dataclass(slots=True)
class Moments:
    """Second moments of regressors and channels, enough for the regression and its residual.

    Attributes:
        features: Sum of outer products of regressors, F + 1 of them: the last is constant.
        fx: [F + 1, C] float64 cross products.
        channels: Sum of outer products of channels.
        tokens: Number of tokens added.
        known: Regressors behind those of the token table; each has a scale of its own.
    """

    features: Gram
    fx: Tensor
    channels: Gram
    tokens: int = 0
    known: int = 0

    @classmethod
    def empty(cls, features: int, channels: int, known: int = 0) -> Moments:
        """Return zero moments of `features` regressors, `known` of them known channels."""
        fx = torch.zeros(features + 1, channels, dtype=torch.float64)
        return cls(Gram.empty(features + 1), fx, Gram.empty(channels), known=known)

    def add(self, features: Tensor, channels: Tensor) -> None:
        """Add one session: regressors [T, F] and channels [T, C], float32."""
        f = torch.cat([features, features.new_ones(len(features), 1)], 1)
        self.features.add(f)
        self.fx += f.T @ channels
        self.channels.add(channels)
        self.tokens += len(features)

    @property
    def ff(self) -> Tensor:
        """Sum of outer products of regressors, [F + 1, F + 1] float64; summed up at each call."""
        return self.features.matrix()

    def solve(self, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Return weight [F, C] and bias [C] of the ridge regression, float32."""
        ff = self.ff
        energy = ff.diagonal().clone()
        of_tokens = len(energy) - 1 - self.known
        # Columns of the token table are alike in scale; known channels are not, and a common penalty would hide some.
        energy[:of_tokens] = torch.cat([energy[:of_tokens], energy[-1:]]).mean()
        energy = energy.clamp(min=1e-6 * float(energy.mean()) + 1e-12)  # a regressor may be 0 in every session
        energy[-1] = 0.0  # the constant is free
        solution = torch.linalg.solve(ff + ridge * energy.diag(), self.fx)
        return solution[:-1].float(), solution[-1].float()

    def directions(self, metric: Metric, count: int) -> Tensor:
        """Return the directions [F, count] of the regressors that tell most of the channels, float32.

        Where the weights of the regression, seen in the metric and against the spread of the regressors, have most
        energy.

        Args:
            metric: The weight of the squared error.
            count: Directions.
        """
        spread = self._spread()
        floor = 1e-6 * spread.diagonal().diag() + 1e-9 * torch.eye(len(spread), dtype=spread.dtype)
        root = torch.linalg.cholesky(spread + floor)
        weight = root.T @ self.solve()[0].double()
        _, vectors = eigenvectors(weight @ metric.matrix() @ weight.T)
        chosen = torch.linalg.solve(root.T, vectors[:, -min(len(spread), count) :].flip(1))
        # Orthogonal where channels have unit spread: the ridge goes on holding back what hardly varies.
        scale = spread.diagonal().sqrt().clamp(min=1e-12)[:, None]
        found: Tensor = torch.linalg.qr(scale * chosen)[0] / scale
        return (found / found.abs().amax()).float()

    def factored(self, metric: Metric, width: int, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Return inward [F, H] and outward [H, C], float32: the regression of rank H (Izenman 1975).

        Of all matrices of that rank their product leaves the least error in the metric.

        Args:
            metric: The weight of the squared error.
            width: H.
            ridge: Penalty of the regression.
        """
        weight = self.solve(ridge)[0].double()
        root, inverse = metric.roots()
        spread = self._spread()
        if len(spread) < len(metric):
            # The eigenvectors of M'M from those of MM', which is smaller: M = spread^(1/2) weight root.
            values, vectors = eigenvectors(spread)
            fitted = (vectors * values.clamp(min=0).sqrt()).T @ weight @ root
            values, left = eigenvectors(fitted @ fitted.T)
            values, left = values[-width:].flip(0), left[:, -width:].flip(1)
            basis = fitted.T @ (left * values.clamp(min=1e-12 * float(values[0]) + 1e-30).rsqrt())
        else:
            _, basis = eigenvectors(root @ (weight.T @ spread @ weight) @ root)
            basis = basis[:, -width:].flip(1)
        return (weight @ (root @ basis)).float(), (basis.T @ inverse).float()

    def _spread(self) -> Tensor:
        """Return the sum of outer products of regressors around their means, [F, F] float64."""
        ff = self.ff
        return ff[:-1, :-1] - torch.outer(ff[:-1, -1], ff[-1, :-1]) / max(1.0, float(ff[-1, -1]))

    def constant(self, weight: Tensor) -> Tensor:
        """Return the bias [C] float32 that leaves no mean error beside a weight [F, C]."""
        last = self.ff[-1]
        return ((self.fx[-1] - last[:-1] @ weight.double()) / max(1.0, float(last[-1]))).float()

    def covariance(self) -> Tensor:
        """Return the covariance [C, C] float64 of the channels."""
        count, summed = max(1, self.tokens), self.fx[-1]
        return (self.channels.matrix() - torch.outer(summed, summed) / count) / count

    def residual_covariance(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the covariance [C, C] float64 of what the regression leaves."""
        b = torch.cat([weight, bias[None]]).double()
        cross = b.T @ self.fx
        return (self.channels.matrix() - cross - cross.T + b.T @ self.ff @ b) / max(1, self.tokens)
