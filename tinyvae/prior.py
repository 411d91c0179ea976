"""What the tokens alone say about a cache, before a single bit is spent.

Expected channels at position t come from the tokens at t, t-1, ..., t-K+1 through a low-rank token table and a few
hidden units, which learned causal layers may refine. It needs the token ids, which a session holds anyway, and costs
no bits. Where the model has run its first layers over the tokens, channels of one of these are known as well, and those
of a token and of what came before it are further regressors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyvae.weights import RankedMatrix, StoredMatrix, as_buffer, as_parameter

BLOCK_TAPS = 8
SHARP_COLUMNS = 16
SHARP_UNITS = 32

REACHES_TOKENS = (4, 32)
CONTEXTS = 1 + len(REACHES_TOKENS)
"""What is known of the past: the token before, and a mean over each reach."""

PAST_DIRECTIONS = 64
"""Directions of known channels that are looked at in the past. A quarter of the bundled model's: 1 to 6 % more bits."""

MEAN_BLOCK = 64


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


def contexts(known: Tensor) -> Iterator[Tensor]:
    """Yield what is known of each token's past, [T, C'] each: channels of the token before, then means.

    Args:
        known: [T, C'] float32.
    """
    yield functional.pad(known, (0, 0, 1, 0))[: len(known)]
    for reach in REACHES_TOKENS:
        yield trailing_mean(known, reach)


def trailing_mean(rows: Tensor, reach_tokens: int) -> Tensor:
    """Return the mean of each row [T, C] and its predecessors, whose weight falls by e every `reach_tokens` rows.

    Block by block, one product for all: a loop over tokens would cost more than all else that decoding does.
    """
    blocks = -(-len(rows) // MEAN_BLOCK)
    padded = functional.pad(rows, (0, 0, 0, blocks * MEAN_BLOCK - len(rows)))
    within = _decay(MEAN_BLOCK, 1 / reach_tokens) * (1 - math.exp(-1 / reach_tokens))
    inside = within @ padded.view(blocks, MEAN_BLOCK, rows.shape[1])
    ends = functional.pad(inside[:, -1], (0, 0, 1, 0))[:blocks]  # what the block before ends with
    carried = _decay(blocks, MEAN_BLOCK / reach_tokens) @ ends
    fading = torch.exp(-torch.arange(1, MEAN_BLOCK + 1) / reach_tokens)
    return (inside + fading[:, None] * carried[:, None]).flatten(0, 1)[: len(rows)]


def _decay(size: int, rate: float) -> Tensor:
    """Return [size, size] float32: e to the -`rate` times rows since, 0 for rows to come."""
    since = (torch.arange(size)[:, None] - torch.arange(size)).clamp(min=0)
    return torch.exp(-rate * since).tril()


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
        known: Channels known at no bits, C'; 0 where no layer is.

    Attributes:
        bias: [C] float32.
    """

    bias: Tensor

    def __init__(
        self, vocab_size: int, rank: int, taps: int, width: int, channels: int, layers: int = 0, known: int = 0
    ) -> None:
        super().__init__()
        self.taps = taps
        self.table = TokenTable(vocab_size, rank)
        self.inward = StoredMatrix(taps * rank, width, 6)
        self.past = StoredMatrix(known, min(known, PAST_DIRECTIONS), 8) if known else None
        self.known = StoredMatrix(known + CONTEXTS * self.past.columns, width, 8) if self.past else None
        self.blocks = nn.ModuleList(CausalBlock(width, BLOCK_TAPS) for _ in range(layers))
        self.outward = RankedMatrix(width, channels, SHARP_UNITS)
        self.register_buffer("bias", torch.zeros(channels))

    def begin_training(self) -> None:
        """Give all matrices float32 parameters."""
        as_parameter(self, "bias")
        for part in self._parts():
            part.begin_training()

    def end_training(self) -> None:
        """Keep what was trained."""
        as_buffer(self, "bias", torch.float32)
        for part in self._parts():
            part.end_training()

    def _parts(self) -> Iterator[Any]:
        yield from (self.table, self.inward, self.outward, *self.blocks)
        if self.past is not None and self.known is not None:
            yield from (self.past, self.known)

    def features(self, token_ids: Tensor) -> Tensor:
        """Return the regressors [T, K * r] of token ids [T] int64."""
        return lagged(self.table.rows(token_ids), self.taps)

    @property
    def is_training(self) -> bool:
        """Whether the matrices are parameters."""
        return self.outward.is_training

    def forward(self, token_ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Return expected channels [T, C] float32 for token ids [T] int64 and known channels [T, C'] float32."""
        return self.expected(self.hidden(token_ids, known))

    def hidden(self, token_ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Return hidden units [T, H] float32, which are all that the prior has to say of each token."""
        hidden = self.features(token_ids) @ self.inward.dense
        if self.past is not None and self.known is not None:
            assert known is not None
            present, past = self.known.dense[: known.shape[1]], self.known.dense[known.shape[1] :]
            hidden = torch.addmm(hidden, known, present)
            hidden = torch.addmm(hidden, torch.cat([*contexts(known @ self.past.dense)], 1), past)
        for layer in self.blocks:
            hidden = layer(hidden)
        return hidden

    def expected(self, hidden: Tensor) -> Tensor:
        """Return the channels [T, C] float32 that hidden units [T, H] stand for."""
        return torch.addmm(self.bias, hidden, self.outward.dense)

    @property
    def mixing(self) -> Tensor:
        """The matrix from all regressors, those of known channels last, to hidden units, float32."""
        return self.inward.dense if self.known is None else torch.cat([self.inward.dense, self.known.dense])

    @torch.no_grad()
    def store(self, inward: Tensor, outward: Tensor) -> None:
        """Keep what `Moments.factored` found."""
        of_tokens = len(self.inward.scales)
        self.inward.store(inward[:of_tokens])
        if self.known is not None:
            self.known.store(inward[of_tokens:])
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

    def narrowed(self, past: Tensor) -> Moments:
        """Return the moments with the known channels of each context times a matrix [C', D]."""
        channels, directions = past.shape
        same = len(self.ff) - 1 - CONTEXTS * channels
        wide = torch.zeros(len(self.ff), same + CONTEXTS * directions + 1, dtype=torch.float64)
        wide[:same, :same] = torch.eye(same)
        for number in range(CONTEXTS):
            row, column = same + number * channels, same + number * directions
            wide[row : row + channels, column : column + directions] = past
        wide[-1, -1] = 1.0
        known = self.known - CONTEXTS * (channels - directions)
        return Moments(wide.T @ self.ff @ wide, wide.T @ self.fx, self.xx, self.tokens, known)

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

    def past_directions(self, channels: int, metric: Tensor) -> Tensor:
        """Return the directions [C', D] of known channels whose past tells most, float32.

        The regressors are those of the token table, the known channels, and these in each context. Where the
        weights of all contexts, seen in the metric and against the spread of the channels, have most energy.

        Args:
            channels: C'.
            metric: [C, C] float64 positive definite, the weight of the squared error.
        """
        first = len(self.ff) - 1 - self.known
        here = slice(first, first + channels)
        spread = self.ff[here, here] - torch.outer(self.ff[here, -1], self.ff[-1, here]) / max(
            1.0, float(self.ff[-1, -1])
        )
        root = torch.linalg.cholesky(spread + 1e-6 * spread.diagonal().diag() + 1e-9 * torch.eye(channels))
        weights = self.solve()[0].double()[first + channels :].view(CONTEXTS, channels, -1)
        energy = torch.zeros_like(spread)
        for weight in weights:
            energy += root.T @ weight @ metric @ weight.T @ root
        _, vectors = torch.linalg.eigh(energy)
        chosen = torch.linalg.solve(root.T, vectors[:, -min(channels, PAST_DIRECTIONS) :].flip(1))
        # Orthogonal where channels have unit spread: the ridge goes on holding back what hardly varies.
        scale = spread.diagonal().sqrt().clamp(min=1e-12)[:, None]
        found: Tensor = torch.linalg.qr(scale * chosen)[0] / scale
        return (found / found.abs().amax()).float()

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
