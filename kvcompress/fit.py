"""Fit a TinyVAE codec in closed form to the caches of recorded sessions.

The sessions are streamed: each pass runs the model over them again and keeps only sums, so memory
does not grow with their number.

1. token means and sensitivity (Fisher matrix) -> token table, weight of the error;
2. moments of regressors and channels -> prior, covariance of what it leaves, weighted KLT;
3. on sessions kept out of 1 and 2: what decoded neighbours tell -> weights of the prediction; spread of what
   is left by phase, latent and token -> levels, tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcompress.channels import Rope, group_layers, group_positions, layer_shapes, to_channels
from kvcompress.codec import TinyVAECodec, rope_of
from kvcompress.errors import InputError
from kvcompress.hf.capture import capture
from kvcompress.hf.sensitivity import cache_gradients
from kvcompress.recompute import Known
from kvcompress.snapshot import KVSnapshot
from tinyvae import Context, TinyVAEConfig
from tinyvae.offsets import age_classes, fit_offsets
from tinyvae.prior import CONTEXTS, Moments, TokenMeans, TokenPrior, TokenTable, contexts, lagged
from tinyvae.spread import calibrate_group
from tinyvae.tables import build_tables
from tinyvae.transform import Transform, block_metric, sensitivity_weight, weighted_klt

COARSER_STEP = 4.0
"""Beside known layers so little is left to code that a step of the widest latent's spread still holds "high"."""

Progress = Callable[[str, int, int], None]
"""Called with the pass, the sessions done and their number."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Dials of the closed-form fit.

    Attributes:
        rank: Latents per group.
        prior_rank: Columns of the token table.
        prior_taps: Tokens the prior looks up.
        prior_width: Hidden units of the prior.
        lowest_level: Level below which a latent is not coded: at 24 the standard deviation is .18 of the step.
        recompute_layers: Layers that the model runs when a session is restored, m; with m > 0 only those above m are
            coded, see `kvcompress.recompute`.
        fisher_exponent: See `tinyvae.transform.sensitivity_weight`.
        fisher_sessions: Sessions whose gradients are taken.
        continuation_tokens: Tokens of each of them that stand for the future.
        worth_exponent: See `tinyvae.offsets.fit_offsets`.
        worth_draws: Futures sampled of each session to measure what its tokens are worth.
        calibration_share: Share of the sessions kept for levels, tables and tiers.
        sample_rows: Rows of latents kept for the tables.
        seed: Of sampled tokens and of the split.
    """

    rank: int = 352
    prior_rank: int = 72
    prior_taps: int = 4
    prior_width: int = 160
    lowest_level: int = 24
    recompute_layers: int = 0
    fisher_exponent: float = 0.7
    fisher_sessions: int = 64
    continuation_tokens: int = 256
    worth_exponent: float = 0.75
    worth_draws: int = 2
    calibration_share: float = 0.25
    sample_rows: int = 4096
    seed: int = 0


@dataclass(slots=True)
class _Group:
    """What the first pass gathers about one group of layers."""

    layers: tuple[int, ...]
    known: Known
    means: TokenMeans
    fisher: Tensor


@dataclass(slots=True)
class _Solved:
    """What the second pass solves for a group: prior, transform, variances of its latents [R]."""

    prior: TokenPrior
    transform: Transform
    variances: Tensor


class Fitter:
    """Runs the passes over one model's sessions.

    Args:
        model: A causal language model in float32.
        tokenizer: Its tokenizer, for the fingerprint; may be None.
        sessions: Token ids of each session, [N] int64.
        settings: Dials.
        progress: Called after each session.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sessions: Sequence[Tensor],
        settings: FitSettings,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        if len(sessions) < 4:
            raise InputError(f"{len(sessions)} sessions are too few to fit a codec", "Give at least 4")
        order = list(range(len(sessions)))
        random.Random(settings.seed).shuffle(order)
        kept = max(1, round(settings.calibration_share * len(order)))
        self.calibration = [sessions[i] for i in order[:kept]]
        self.sessions = [sessions[i] for i in order[kept:]]
        self.model, self.tokenizer, self.settings, self.progress = model, tokenizer, settings, progress
        first = self._capture(self.sessions[0])
        self.shapes, self.origin = layer_shapes(first), first.origin
        self.rope: Rope = rope_of(first.origin)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        recompute, kinds = settings.recompute_layers, first.origin.layer_kinds
        require_coded_layers(recompute, len(self.shapes))
        self.groups = []
        for layers in group_layers(first.origin, self.shapes, recompute + 1 if recompute else 0):
            width = sum(self.shapes[i].channels for i in layers)
            fisher = torch.zeros(width, width, dtype=torch.float64)
            known = Known.of(layers[0], recompute, kinds)
            self.groups.append(_Group(layers, known, TokenMeans.empty(self.vocab_size, width), fisher))

    def _capture(self, token_ids: Tensor) -> KVSnapshot:
        return capture(self.model, token_ids, tokenizer=self.tokenizer)

    def _snapshots(self, stage: str, sessions: Sequence[Tensor]) -> Iterable[KVSnapshot]:
        for done, token_ids in enumerate(sessions, 1):
            yield self._capture(token_ids)
            self.progress(stage, done, len(sessions))

    def _rows(self, snapshot: KVSnapshot, group: _Group) -> tuple[Tensor, Tensor]:
        """Return token ids [T] and channels [T, C] of a group."""
        places = group_positions(snapshot, group.layers)
        return snapshot.token_ids[places], to_channels(snapshot, group.layers, self.rope)

    def _features(self, snapshot: KVSnapshot, group: _Group, table: TokenTable) -> Tensor:
        """Return the regressors [N, F] of the prior of a group."""
        of_tokens = lagged(table.rows(snapshot.token_ids), self.settings.prior_taps)
        known = group.known.rows(dict(enumerate(snapshot.layers)), snapshot.tokens, self.rope)
        return of_tokens if known is None else torch.cat([of_tokens, known, *contexts(known)], 1)

    def gather_means(self) -> None:
        """Pass 1a: token means."""
        for snapshot in self._snapshots("token means", self.sessions):
            for group in self.groups:
                group.means.add(*self._rows(snapshot, group))

    def gather_sensitivity(self) -> None:
        """Pass 1b: Fisher matrix of the cache entries."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        chosen = self.sessions[: self.settings.fisher_sessions]
        for done, token_ids in enumerate(chosen, 1):
            cut = max(len(token_ids) - self.settings.continuation_tokens, len(token_ids) // 2)
            snapshot = self._capture(token_ids[:cut])
            gradients = cache_gradients(self.model, snapshot, token_ids[cut:], self.rope, generator)
            for group in self.groups:
                columns = [t.transpose(0, 1).flatten(1) for i in group.layers for t in gradients[i]]
                rows = torch.cat(columns, 1)
                group.fisher += (rows.T @ rows).double() / len(rows)
            self.progress("sensitivity", done, len(chosen))

    def solve(self) -> list[_Solved]:
        """Pass 2: token table, regression, weighted KLT."""
        s = self.settings
        weights = [sensitivity_weight(group.fisher, s.fisher_exponent) for group in self.groups]
        tables, moments = [], []
        for group, weight in zip(self.groups, weights, strict=True):
            table = TokenTable(self.vocab_size, min(s.prior_rank, len(weight)))
            table.store(group.means.table(s.prior_rank, weight.diagonal().sqrt().float()))
            tables.append(table)
            known = (1 + CONTEXTS) * group.known.channels(self.shapes)
            moments.append(Moments.empty(table.rank * s.prior_taps + known, len(weight), known))
        for snapshot in self._snapshots("prior", self.sessions):
            for group, table, moment in zip(self.groups, tables, moments, strict=True):
                places = group_positions(snapshot, group.layers)
                features = self._features(snapshot, group, table)[places]
                moment.add(features, to_channels(snapshot, group.layers, self.rope))
        return [
            self._solved(table, moment, weight, group)
            for table, moment, weight, group in zip(tables, moments, weights, self.groups, strict=True)
        ]

    def _blocks(self, group: _Group) -> tuple[int, ...]:
        return tuple(size for i in group.layers for size in self.shapes[i].blocks)

    def _solved(self, table: TokenTable, moment: Moments, weight: Tensor, group: _Group) -> _Solved:
        s, blocks, known = self.settings, self._blocks(group), group.known.channels(self.shapes)
        width = min(s.prior_width, len(weight), table.rank * s.prior_taps + known)
        prior = TokenPrior(self.vocab_size, table.rank, s.prior_taps, width, len(weight), known=known)
        prior.table.load_state_dict(table.state_dict())
        if prior.past is not None:
            prior.past.store(moment.past_directions(known, weight))
            moment = moment.narrowed(prior.past.dense)
        prior.store(*moment.factored(weight, width))
        # The stored weights are rounded: constant and covariance are those of what they really leave.
        matrix = prior.mixing @ prior.outward.dense
        prior.bias.copy_(moment.constant(matrix))
        covariance = moment.residual_covariance(matrix, prior.bias)
        _, synthesis, variances = weighted_klt(covariance, weight, s.rank)
        transform = Transform(blocks, len(synthesis))
        transform.store(synthesis, block_metric(weight, blocks))
        return _Solved(prior, transform, variances)

    def build(self, solved: Sequence[_Solved]) -> TinyVAECodec:
        """Assemble the codec and fit to it what `refit` fits."""
        codec = self._assemble(solved)
        self.refit(codec)
        return codec.eval()

    def refit(self, codec: TinyVAECodec) -> None:
        """Fit what follows from prior and transform: offsets; on sessions kept out prediction, levels, tables."""
        self.gather_worth(codec)
        samples = [
            calibrate_group(codec.vae(index), rows, self.settings.sample_rows)
            for index, rows in enumerate(self._calibration_latents(codec))
        ]
        pooled = torch.cat(samples)
        pick = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(self.settings.seed))
        codec.store_tables(*build_tables(pooled[pick[:400_000]]))

    def gather_worth(self, codec: TinyVAECodec) -> None:
        """Pass 2b: what an error in each token costs, from gradients with respect to latents -> offsets."""
        generator = torch.Generator().manual_seed(self.settings.seed + 1)
        chosen = self.sessions[: self.settings.fisher_sessions]
        found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in self.groups]
        for done, token_ids in enumerate(chosen, 1):
            cut = max(len(token_ids) - self.settings.continuation_tokens, len(token_ids) // 2)
            snapshot = self._capture(token_ids[:cut])
            worth = token_worth(self.model, codec, snapshot, token_ids[cut:], generator, self.settings.worth_draws)
            for group, (place, of_token) in enumerate(worth):
                found[group].append((token_ids[place], age_classes(cut)[place], of_token))
            self.progress("worth of tokens", done, len(chosen))
        for group, rows in enumerate(found):
            vae = codec.vae(group)
            of_id, of_age = fit_offsets(rows, vae.config.vocab_size, self.settings.worth_exponent)
            vae.token_offset.copy_(of_id)
            vae.age_offset.copy_(of_age)

    def _assemble(self, solved: Sequence[_Solved]) -> TinyVAECodec:
        # One step for all groups: their latents are in the same unit, the model's output.
        step = max(float(part.variances[0].sqrt()) for part in solved)
        if self.settings.recompute_layers:
            step *= COARSER_STEP
        groups = []
        for group, part in zip(self.groups, solved, strict=True):
            config = TinyVAEConfig(
                blocks=self._blocks(group),
                vocab_size=self.vocab_size,
                rank=len(part.variances),
                prior_rank=part.prior.table.rank,
                prior_taps=self.settings.prior_taps,
                prior_width=part.prior.inward.columns,
                reference_step=step,
                lowest_level=self.settings.lowest_level,
            )
            groups.append({"layers": list(group.layers), "config": config.to_json()} | group.known.to_json())
        codec = TinyVAECodec(
            groups=groups,
            shapes=[[s.heads, s.key_size, s.value_size] for s in self.shapes],
            model=asdict(self.origin.fingerprint),
            recompute_layers=self.settings.recompute_layers,
            origin=replace(self.origin, next_position=0).to_json(),
            fitted={
                "sessions": len(self.sessions),
                "calibration_sessions": len(self.calibration),
                "tokens": int(sum(len(s) for s in self.sessions)),
                "settings": asdict(self.settings),
            },
        )
        for index, part in enumerate(solved):
            vae = codec.vae(index)
            vae.prior.load_state_dict(part.prior.state_dict())
            vae.transform.load_state_dict(part.transform.state_dict())
        return codec

    @torch.inference_mode()
    def _calibration_latents(self, codec: TinyVAECodec) -> list[list[tuple[Tensor, Context]]]:
        """Return for each group, and each session kept out, latents [T, R] and their context."""
        found: list[list[tuple[Tensor, Context]]] = [[] for _ in self.groups]
        for snapshot in self._snapshots("calibration", self.calibration):
            for index in range(len(self.groups)):
                found[index].append(codec.latents(snapshot, index))
        return found


def require_coded_layers(recompute_layers: int, layers: int) -> None:
    """Raise `InputError` unless m recomputed layers leave one of `layers` to code; the next one comes with them."""
    if not 0 <= recompute_layers <= max(0, layers - 2):
        what = f"{recompute_layers} layers cannot be recomputed of a model that has {layers}"
        raise InputError(what, f"Choose 0 to {max(0, layers - 2)}")


def token_worth(
    model: Any,
    codec: TinyVAECodec,
    snapshot: KVSnapshot,
    continuation: Tensor,
    generator: torch.Generator,
    draws: int,
) -> list[tuple[Tensor, Tensor]]:
    """Return for each group the positions [T] and what a unit of squared error in each token's latents costs, [T].

    The squared gradient of sampled log-likelihoods with respect to a token's latents, summed over these and averaged
    over draws: the diagonal of the Fisher matrix, token by token.
    """
    totals: dict[int, Tensor] = {}
    rope = rope_of(snapshot.origin)
    for _ in range(draws):
        gradients = cache_gradients(model, snapshot, continuation, rope, generator)
        for group, layers in enumerate(codec.groups):
            rows = torch.cat([t.transpose(0, 1).flatten(1) for i in layers for t in gradients[i]], 1)
            energy = (rows @ codec.vae(group).transform.synthesis.dense.T).square().sum(1) / draws
            totals[group] = totals.get(group, 0.0) + energy
    return [(group_positions(snapshot, layers), totals[group]) for group, layers in enumerate(codec.groups)]


def fit_codec(
    model: Any, tokenizer: Any, sessions: Sequence[Tensor], settings: FitSettings, progress: Progress
) -> tuple[TinyVAECodec, list[Tensor]]:
    """Fit a codec and return it with the sessions kept out of the fit, for calibrating its tiers."""
    fitter = Fitter(model, tokenizer, sessions, settings, progress)
    fitter.gather_means()
    fitter.gather_sensitivity()
    return fitter.build(fitter.solve()), fitter.calibration
