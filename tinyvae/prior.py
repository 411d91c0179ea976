"""The prior: predict a cache from its token ids, before any bit is spent.

Expected channels at position t come from the tokens at t, t-1, ..., t-K+1 through a low-rank token table and a few
hidden units, which learned causal layers may refine. It needs the token ids, which a session holds anyway, and costs
no bits. Where the model has run its first layers over the tokens, channels of one of these are known as well, and those
of a token and of what came before it are further regressors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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

BELOW_LAGS = 2
"""Decoded latents of lower layers are given of the token and of the one before it."""

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
    fading = torch.exp(-torch.arange(1, MEAN_BLOCK + 1, dtype=torch.float32) / reach_tokens)
    return (inside + fading[:, None] * carried[:, None]).flatten(0, 1)[: len(rows)]


def _decay(size: int, rate: float) -> Tensor:
    """Return [size, size] float32: e to the -`rate` times rows since, 0 for rows to come."""
    since = (torch.arange(size)[:, None] - torch.arange(size)).clamp(min=0).to(torch.float32)
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
        self.inward.store(torch.randn(rows, self.outward.columns, generator=generator, dtype=torch.float32) / rows**0.5)
        self.outward.store(torch.zeros(self.outward.columns, self.outward.columns, dtype=torch.float32))

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
    turns hidden units into channels. What has been decoded of lower layers adds to the hidden units last.

    Args:
        vocab_size: V.
        rank: r, columns of the token table.
        taps: K, tokens looked up, the current one included.
        width: H, hidden units.
        channels: C.
        layers: Causal layers, learned; 0 for a prior in closed form.
        known: Channels known at no bits, C'; 0 where no layer is.
        below: Decoded latents of lower layers that are given, B.
        first: Whether the token at place 0, which sees no other, has a constant and a mixing of its own. Its hidden
            units then begin with an indicator.
        table: The token table of another prior, to be shared; None for one of its own.

    Attributes:
        bias: [C] float32.
        opening: [C] float32, with `first` what is added to the bias at place 0. In few bits its error would cost more
            than that of all other tokens: on SmolLM2-135M .0012 nats.
    """

    bias: Tensor
    opening: Tensor | None
    table: TokenTable

    def __init__(
        self,
        vocab_size: int,
        rank: int,
        taps: int,
        width: int,
        channels: int,
        layers: int = 0,
        known: int = 0,
        *,
        below: int = 0,
        first: bool = False,
        table: TokenTable | None = None,
    ) -> None:
        super().__init__()
        self.taps, self.owns_table = taps, table is None
        if table is None:
            self.table = TokenTable(vocab_size, rank)
        else:  # not registered: it is saved and trained with the prior that owns it
            self.__dict__["table"] = table
        self.inward = StoredMatrix(taps * rank, width, 6)
        self.past = StoredMatrix(known, min(known, PAST_DIRECTIONS), 8) if known else None
        self.known = StoredMatrix(known + CONTEXTS * self.past.columns, width, 8) if self.past else None
        self.below = StoredMatrix(BELOW_LAGS * below, width, 8) if below else None
        self.first = StoredMatrix(rank, width, 8) if first else None
        self.blocks = nn.ModuleList(CausalBlock(width, BLOCK_TAPS) for _ in range(layers))
        self.outward = RankedMatrix(width, channels, SHARP_UNITS)
        self.register_buffer("opening", torch.zeros(channels, dtype=torch.float32) if first else None)
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.float32))

    def begin_training(self, *, with_table: bool = True) -> None:
        """Give all matrices float32 parameters, the token table only where asked."""
        as_parameter(self, "bias")
        for part in self._parts():
            if with_table or part is not self.table:
                part.begin_training()

    def end_training(self) -> None:
        """Keep what was trained."""
        as_buffer(self, "bias", torch.float32)
        for part in self._parts():
            part.end_training()

    def _parts(self) -> Iterator[Any]:
        if self.owns_table:
            yield self.table
        yield from (self.inward, self.outward, *self.blocks)
        yield from (part for part in (self.past, self.known, self.below, self.first) if part is not None)

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
        """Return hidden units [N, H] float32 of a whole session: what is to say of each token before any is decoded.

        With a prior of the first place they are [N, 1 + H], the indicator before the others.
        """
        hidden = self.features(token_ids) @ self.inward.dense
        if self.past is not None and self.known is not None:
            assert known is not None
            known = without_first(known) if self.first is not None else known
            present, past = self.known.dense[: known.shape[1]], self.known.dense[known.shape[1] :]
            hidden = torch.addmm(hidden, known, present)
            hidden = torch.addmm(hidden, torch.cat([*contexts(known @ self.past.dense)], 1), past)
        for layer in self.blocks:
            hidden = layer(hidden)
        return hidden if self.first is None else self._with_first(hidden, token_ids)

    def _with_first(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        assert self.first is not None
        opening = self.table.rows(token_ids[:1]) @ self.first.dense
        indicator = (torch.arange(len(hidden)) == 0).to(hidden.dtype)[:, None]
        return torch.cat([indicator, torch.cat([opening, hidden[1:]])], 1)

    def with_below(self, hidden: Tensor, below: Tensor) -> Tensor:
        """Return hidden units [T, ·] of the tokens of a group with what decoded latents [T, B] of lower layers add."""
        if self.below is None:
            return hidden
        added = lagged(below, BELOW_LAGS) @ self.below.dense
        if self.first is None:
            return hidden + added
        return torch.cat([hidden[:, :1], hidden[:, 1:] + added * (1 - hidden[:, :1])], 1)

    def expected(self, hidden: Tensor) -> Tensor:
        """Return the channels [T, C] float32 that hidden units [T, H] stand for."""
        return torch.addmm(self.bias, hidden, self.spoken)

    @property
    def spoken(self) -> Tensor:
        """The matrix from all hidden units to channels, float32; with `first` the row of the indicator is above."""
        return self.outward.dense if self.opening is None else torch.cat([self.opening[None], self.outward.dense])

    @property
    def mixing(self) -> Tensor:
        """The matrix from all regressors to hidden units, float32: of tokens, known channels, lower latents."""
        return torch.cat([part.dense for part in (self.inward, self.known, self.below) if part is not None])

    @torch.no_grad()
    def store(self, inward: Tensor, outward: Tensor) -> None:
        """Keep what `Moments.factored` found."""
        start = 0
        for part in (self.inward, self.known, self.below):
            if part is not None:
                part.store(inward[start : start + len(part.scales)])
                start += len(part.scales)
        self.outward.store(outward)

    @torch.no_grad()
    def store_first(self, mixing: Tensor, constant: Tensor) -> None:
        """Keep what place 0 has: the mixing [r, H] of its token, and the constant [C] instead of `bias`."""
        assert self.first is not None
        assert self.opening is not None
        self.first.store(mixing)
        self.opening.copy_(constant - self.bias)


def without_first(rows: Tensor) -> Tensor:
    """Return rows [N, C] with the first of them 0: what stands first is like no other place and tells of none."""
    return torch.cat([torch.zeros_like(rows[:1]), rows[1:]])
