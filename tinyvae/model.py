"""TinyVAE: a conditional transform codec of the channels of a KV cache.

```
token_ids ──► prior ──┬────────────┬─────────────────────────────────────┐
                      │            ▼ -                                   ▼ +
channels ─────────────┼──────────► o ─► analyse ─► o ─► quantize         o ─► channels'
                      ▼                          - ▲        │            ▲
token_ids ──► coding passes ──► predicted from decoded ───┤   symbols (integers)│
                         latents                   └───► + ─┴─ dequantize ─► synthesise
```
Prior and prediction are subtracted before quantisation and added back after decoding: they move the
reconstruction, never a symbol's probability. Levels, which choose the tables, are integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tinyvae.config import Context, TinyVAEConfig
from tinyvae.neighbours import CODING_PASSES, MATCHES, SOURCES, CodingPass, coding_passes
from tinyvae.offsets import AGES, age_classes
from tinyvae.predictor import Predictor
from tinyvae.prior import TokenPrior, TokenTable
from tinyvae.quantize import LEVELS, dequantize, quantize, steps_at
from tinyvae.transform import Transform
from tinyvae.weights import as_buffer, as_parameter

FAR_TOKENS = 32
"""One token in so many may have latents beyond those that are multiplied for all: place 0 is coded far finer."""


class TinyVAE(nn.Module):
    """One group of layers: prior, transform, prediction, quantiser and the integers that choose the tables.

    Args:
        config: Geometry.
        known: Channels of other layers that the prior is given, see `TokenPrior`.
        below: Decoded latents of lower layers that it is given.
        table: The token table of another group, to be shared.

    Attributes:
        base_level: [CODING_PASSES, R] int16 level of each latent at QP 0.
        match_level: [CODING_PASSES, MATCHES] int16 added where the same token or pair was decoded before.
        token_level: [V] int8 added for each token id: how far above or below average the
            residual of that token lies. Free side information, since the ids are known.
        token_offset: [V] int8 and
        age_offset: [AGES] int8: added to the QP of each token, see `tinyvae.offsets`.
        first_place: [2] int16, there with `config.first`: what is added to the QP and to the levels of place 0.
        weights: [CODING_PASSES, MATCHES, SOURCES, R] float16: how much of each source's latent is expected again.
        centroids: [LEVELS, 2] float32: how far, in steps, the mean of bin 1 and of the bins above it
            lies below the bin's integer.
    """

    base_level: Tensor
    match_level: Tensor
    token_level: Tensor
    token_offset: Tensor
    age_offset: Tensor
    weights: Tensor
    centroids: Tensor
    first_place: Tensor | None

    def __init__(self, config: TinyVAEConfig, known: int = 0, below: int = 0, table: TokenTable | None = None) -> None:
        super().__init__()
        self.config = config
        sizes = (config.vocab_size, config.prior_rank, config.prior_taps, config.prior_width)
        layers, first = config.prior_layers, config.first
        self.prior = TokenPrior(*sizes, config.channels, layers, known, below=below, first=first, table=table)
        self.transform = Transform(config.blocks, config.rank, config.sharp_latents)
        self.predictor = Predictor(config.rank, config.predictor_width) if config.predictor_width else None
        self.register_buffer("base_level", torch.zeros(CODING_PASSES, config.rank, dtype=torch.int16))
        self.register_buffer("match_level", torch.zeros(CODING_PASSES, MATCHES, dtype=torch.int16))
        self.register_buffer("token_level", torch.zeros(config.vocab_size, dtype=torch.int8))
        self.register_buffer("token_offset", torch.zeros(config.vocab_size, dtype=torch.int8))
        self.register_buffer("age_offset", torch.zeros(AGES, dtype=torch.int8))
        self.register_buffer("weights", torch.zeros(CODING_PASSES, MATCHES, SOURCES, config.rank, dtype=torch.float16))
        self.register_buffer("centroids", torch.zeros(LEVELS, 2, dtype=torch.float32))
        self.register_buffer("first_place", torch.zeros(2, dtype=torch.int16) if config.first else None)
        self._unmixed: Tensor | None = None
        self._moving: Tensor | None = None
        self._joined: Tensor | None = None

    def begin_training(self, *, with_synthesis: bool, with_table: bool = True) -> None:
        """Give prior and prediction, and synthesis and table where asked, parameters that every forward rounds."""
        self.prior.begin_training(with_table=with_table)
        if self.predictor is not None:
            self.predictor.begin_training()
            as_parameter(self, "weights")
        if with_synthesis:
            self.transform.begin_training()

    def end_training(self) -> None:
        """Keep what was trained as integers; there are no parameters afterwards."""
        self.prior.end_training()
        self.transform.end_training()
        if self.predictor is not None:
            self.predictor.end_training()
            as_buffer(self, "weights", torch.float16)
        self._unmixed = self._moving = self._joined = None

    def qps(self, token_ids: Tensor, qp: int) -> Tensor:
        """Return the QP [N] int32 of each token of a whole session, ids [N] int64, at a QP."""
        offsets = self.token_offset[token_ids].int() + self.age_offset[age_classes(len(token_ids))].int()
        if self.first_place is not None and len(offsets):
            offsets[0] = int(self.first_place[0])
        return offsets + qp

    def levels(self, token_ids: Tensor, qps: Tensor, lifts: Tensor | None = None) -> Tensor:
        """Return the level of every symbol, [T, r] int32, from integers alone; negative is not coded.

        Args:
            token_ids: [T] int64.
            qps: [T] int32 QP of each token.
            lifts: [T] int32, see `Context`.
        """
        active = self.active_rank(qps, lifts)
        out = torch.empty(len(token_ids), active, dtype=torch.int32)
        for coding_pass in coding_passes(token_ids):
            of_token = (
                self.token_level[token_ids[coding_pass.span]].int()
                + self.match_level[coding_pass.number][coding_pass.matches]
                + qps[coding_pass.span]
            )
            if lifts is not None:
                of_token += lifts[coding_pass.span]
            out[coding_pass.span] = self.base_level[coding_pass.number, :active].int() + of_token[:, None]
        lowest = qps.clamp(0, self.config.lowest_level)[:, None]
        return out.clamp_(max=LEVELS - 1).masked_fill_(out < lowest, -1)

    def active_rank(self, qps: Tensor, lifts: Tensor | None = None) -> int:
        """Return how many leading latents can be coded at QPs and lifts [T]: the others are zero for every token."""
        highest = self.base_level.int() + self.match_level.int().amax(1, keepdim=True)
        most = int(qps.max()) if len(qps) else 0
        lowest = min(max(most, 0), self.config.lowest_level)
        lifted = int((qps if lifts is None else qps + lifts).max()) if len(qps) else 0
        coded = torch.nonzero(highest.amax(0) + max(most, lifted) + int(self.token_level.max()) >= lowest)
        return int(coded[-1]) + 1 if len(coded) else 0

    def context(
        self,
        token_ids: Tensor,
        known: Tensor | None = None,
        rows: Tensor | None = None,
        lifts: Tensor | None = None,
    ) -> Context:
        """Return what the ids of a whole session tell about the tokens that the group holds.

        Args:
            token_ids: [N] int64.
            known: [N, C'] float32, see `TokenPrior`.
            rows: [T] int64, the positions of the group's tokens; all where None.
            lifts: [N] int32, see `Context`, of tokens other than that at place 0.
        """
        context = Context(token_ids, self.prior.hidden(token_ids, known), self.lifts(token_ids, lifts))
        return context if rows is None or len(rows) == len(token_ids) else context[rows]

    def lifts(self, token_ids: Tensor, lifts: Tensor | None) -> Tensor | None:
        """Return the lifts [N] int32 of the tokens of a session with that of place 0; None where all are ordinary."""
        if self.first_place is None or not len(token_ids):
            return lifts
        found = torch.zeros(len(token_ids), dtype=torch.int32) if lifts is None else lifts.clone()
        found[0] += int(self.first_place[1])
        return found

    def given(self, context: Context, latents: Tensor, below: Tensor | None) -> tuple[Context, Tensor]:
        """Return context and latents [T, R] once decoded latents [T, B] of lower layers are known."""
        if below is None or self.prior.below is None:
            return context, latents
        hidden = self.prior.with_below(context.hidden, below)
        moved = replace(context, hidden=hidden)
        return moved, latents - (hidden - context.hidden) @ self.moving

    def below(self, context: Context, below: Tensor | None) -> Context:
        """Return the context once decoded latents [T, B] of lower layers are known."""
        if below is None or self.prior.below is None:
            return context
        return replace(context, hidden=self.prior.with_below(context.hidden, below))

    def analyse(self, context: Context, channels: Tensor) -> Tensor:
        """Return latents [T, R] of channels [T, C] around the prior's expectation, float32."""
        return self.transform.analyse(channels - self.prior.expected(context.hidden))

    def quantize(self, latents: Tensor, context: Context, qps: Tensor) -> tuple[Tensor, Tensor]:
        """Return symbols and levels, both [T, r] int32, r the active rank, of latents [T, R] at QPs [T]."""
        return self.quantized(latents, context, qps)[:2]

    def quantized(self, latents: Tensor, context: Context, qps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same and what is decoded of them, [T, r] float32."""
        levels = self.levels(context.token_ids, qps, context.lifts)
        symbols, step = torch.zeros_like(levels), steps_at(self.config.reference_step, qps)

        def round_pass(coding_pass: CodingPass, predicted: Tensor) -> Tensor:
            rest = latents[coding_pass.span, : levels.shape[1]] - predicted
            symbols[coding_pass.span] = found = quantize(rest, step[coding_pass.span], levels[coding_pass.span])
            return found

        decoded = self.reconstruct(context, qps, levels, round_pass)
        return symbols, levels, decoded

    def dequantize(self, symbols: Tensor, context: Context, qps: Tensor, levels: Tensor) -> Tensor:
        """Return latents [T, r] float32 of symbols [T, r] int32, the context, QPs [T] and levels [T, r] int32."""
        return self.reconstruct(context, qps, levels, lambda coding_pass, _: symbols[coding_pass.span])

    def reconstruct(
        self, context: Context, qps: Tensor, levels: Tensor, symbols_of: Callable[[CodingPass, Tensor], Tensor]
    ) -> Tensor:
        """Return latents [T, r] float32, pass by pass: the one path of encoder and decoder.

        Args:
            context: Of the T tokens.
            qps: [T] int32 QP of each token.
            levels: [T, r] int32, as `levels` gives them.
            symbols_of: Called with a pass and what is expected of its latents, [N, r]; returns its symbols.
        """
        tokens, active = levels.shape
        step = steps_at(self.config.reference_step, qps)
        decoded = torch.zeros(
            tokens + 1, active, dtype=torch.float32
        )  # the last row stands for sources that do not exist
        lifted = None if context.lifts is None or not bool(context.lifts.any()) else context.lifts != 0
        shown = decoded if lifted is None else torch.zeros_like(decoded)
        for coding_pass in coding_passes(context.token_ids):
            predicted, span = self.predicted(shown, coding_pass, context, qps), coding_pass.span
            rest = dequantize(symbols_of(coding_pass, predicted), step[span], levels[span], self.centroids)
            decoded[:-1][span] = predicted + rest
            if lifted is not None:
                shown[:-1][span] = decoded[:-1][span].masked_fill(lifted[span][:, None], 0.0)
        return decoded[:-1]

    def predicted(self, decoded: Tensor, coding_pass: CodingPass, context: Context, qps: Tensor) -> Tensor:
        """Return what is told about the latents of a coding_pass, [N, r] float32.

        Args:
            decoded: [T + 1, r] float32, latents of earlier coding passes; the last row is 0.
            coding_pass: The pass.
            context: Of the T tokens.
            qps: [T] int32.
        """
        active = decoded.shape[1]
        out = torch.zeros(len(coding_pass.rows), active, dtype=torch.float32)
        if coding_pass.number == 0:
            return out
        weights = self.weights[coding_pass.number, :, :, :active].float()
        for source in range(SOURCES):
            looked_up = decoded.index_select(0, coding_pass.sources[source])
            out.addcmul_(looked_up, weights[:, source].index_select(0, coding_pass.matches))
        if self.predictor is not None:
            guess = self._guess(self.predictor, decoded, coding_pass, context, qps)[:, :active]
            out[:, : guess.shape[1]] += guess
        return out

    def _guess(
        self, predictor: Predictor, decoded: Tensor, coding_pass: CodingPass, context: Context, qps: Tensor
    ) -> Tensor:
        unit = self.config.reference_step
        leading = decoded[:, : predictor.sources] / unit
        missing = predictor.sources - leading.shape[1]
        if missing:
            leading = torch.nn.functional.pad(leading, (0, missing))
        expected = context.hidden[coding_pass.span] @ (self.unmixed / unit)
        guess: Tensor = predictor(leading[coding_pass.sources], expected, qps[coding_pass.span], coding_pass)
        return guess * unit

    @property
    def unmixed(self) -> Tensor:
        """[H, E] float32, from the prior's hidden units to the leading latents of what it expects; made once."""
        assert self.predictor is not None
        if self._unmixed is None or self.prior.is_training:
            analysis = self.transform.analysis[:, : self.predictor.expected]
            self._unmixed = self.prior.spoken @ analysis
        return self._unmixed

    @property
    def moving(self) -> Tensor:
        """[H, R] float32, the same to all latents: how they move when lower layers tell more; made once."""
        if self._moving is None or self.prior.is_training:
            self._moving = self.prior.spoken @ self.transform.analysis
        return self._moving

    def synthesise(self, context: Context, latents: Tensor) -> Tensor:
        """Return channels [T, C] float32 from the prior's expectation and latents [T, r]."""
        (channels,) = self.synthesise_parts(context, latents, [self.config.channels])
        return channels

    def synthesise_parts(self, context: Context, latents: Tensor, widths: Sequence[int]) -> Iterator[Tensor]:
        """Yield the same channels part by part, [T, width] float32 each; the widths add up to C.

        Hidden units and latents go through one product, for each pass over the channels costs as much as a tenth of it.
        A part that fits the processor's cache is still there when its user rotates it, and all parts together never
        ask the system for memory. Latents that are 0 for nearly all tokens, most of them at coarse QPs, are spared.
        """
        units, reach = context.hidden.shape[1], reaches(latents)
        learning = torch.is_grad_enabled() and (latents.requires_grad or self.joined.requires_grad)
        common = latents.shape[1] if learning else common_reach(reach)  # what is 0 has a gradient too
        known, far = torch.cat([context.hidden, latents[:, :common]], 1), torch.nonzero(reach > common)[:, 0]
        rest = latents[far, common:]
        parts = zip(torch.split(self.joined, list(widths), 1), torch.split(self.prior.bias, list(widths)), strict=True)
        for matrix, bias in parts:
            channels = torch.addmm(bias, known, matrix[: known.shape[1]])
            if len(far):
                channels[far] += rest @ matrix[known.shape[1] : units + latents.shape[1]]
            yield channels

    @property
    def joined(self) -> Tensor:
        """[H + R, C] float32, the prior's last matrix above the synthesis; made once."""
        if self._joined is None or self.prior.is_training:
            self._joined = torch.cat([self.prior.spoken, self.transform.synthesis.dense])
        return self._joined

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._unmixed = self._moving = self._joined = None
        super()._load_from_state_dict(*arguments)


def reaches(latents: Tensor) -> Tensor:
    """Return for each token [T] int64 how many leading latents of [T, r] reach to its last that is not 0."""
    columns = torch.arange(1, latents.shape[1] + 1, dtype=torch.int32)
    found: Tensor = (
        ((latents != 0) * columns).amax(1) if latents.numel() else torch.zeros(len(latents), dtype=torch.float32)
    )
    return found.long()


def common_reach(reach: Tensor) -> int:
    """Return how many leading latents all but one token in `FAR_TOKENS` get by with, given the reach [T] of each."""
    return int(reach.sort(descending=True).values[len(reach) // FAR_TOKENS]) if len(reach) else 0
