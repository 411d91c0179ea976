"""Fit a TinyVAE codec in closed form to harvested shards.

Every pass reads the shards, group by group of layers, and keeps sums; none runs the model. What a pass has found lies
in the working directory, so a fit that was killed goes on with the next one.

1. gradients -> Fisher matrix, which is the weight of the error; whether place 0 is an attention sink;
2. embeddings, or means of token ids -> token table;
3. for each group, lower ones first: regressors and channels -> prior, covariance of what it leaves, weighted KLT;
4. the spectra of all groups under the budget -> rank of each;
5. gradients again -> steps by token; on sessions kept out of all this: prediction, levels, tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.recompute import ConditioningLayers
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import harvest
from kvcompress.data.shards import CALIBRATION, FIT, LEVELS, Shards, opening_digest
from kvcompress.errors import InputError
from kvcompress.fit.budget import Budget, model_bytes, prior_columns, prior_units, ranks
from kvcompress.fit.closed_form import Group, Solved, solve_group
from kvcompress.fit.first_place import fit_opening, is_sink
from kvcompress.fit.refit import Refit
from kvcompress.fit.settings import FitSettings
from kvcompress.fit.token_table import embedding_table, mean_table, table_pays
from kvcompress.fit.working import Working
from kvcompress.hf.channels import LayerShape, Rope, group_layers
from kvcompress.hf.rope import rope_of
from kvcompress.hf.types import CausalLM, Tokenizer
from tinyvae import TinyVAEConfig
from tinyvae.fit.moments import Coherence, Gram
from tinyvae.prior import TokenTable
from tinyvae.quantize import LEVELS_PER_OCTAVE
from tinyvae.transform import SHARP_LATENTS, Metric, sensitivity_weight

COARSER_QPS = 32
"""Where known layers or lower groups tell of a latent, QP 0 has a step of four spreads of the widest, two octaves
coarser than elsewhere: they leave so little that a step of one spread still holds "high"."""

COMMON_SHARE = 0.01
"""Of the energy of an error, what all tokens of a session have in common; measured on SmolLM2-135M at the floor."""

LEAST_SESSIONS = 4

Progress = Callable[[str, int, int], None]
"""Called with the pass, the sessions done and their number."""


class Fitter:
    """Runs the passes over the shards of one model's sessions.

    Args:
        shards: The harvest.
        settings: Of the fit.
        progress: Called after each session.
        working: Where passes leave what they found; nothing is kept without.
    """

    def __init__(
        self,
        shards: Shards,
        settings: FitSettings,
        progress: Progress = lambda stage, done, total: None,
        working: Working | None = None,
    ) -> None:
        if len(shards) < LEAST_SESSIONS:
            raise InputError(f"{len(shards)} sessions are too few to fit a codec", f"Give at least {LEAST_SESSIONS}")
        self.shards, self.levels, self.calibration = (shards.part(name) for name in (FIT, LEVELS, CALIBRATION))
        if not len(self.levels) or not len(self.shards):
            what = "the harvest keeps no sessions apart to fit levels to"
            raise InputError(what, "Harvest again with --force", path=shards.directory)
        self.settings, self.progress = settings, progress
        self.working = working or Working(None)
        self.shapes = [LayerShape(*shape) for shape in shards.settings["shapes"]]
        self.origin, self.embeddings = shards.origin, shards.embeddings()
        self.rope: Rope = rope_of(self.origin)
        self.vocab_size = len(self.embeddings)
        recompute, kinds = settings.recompute_layers, self.origin.layer_kinds
        require_coded_layers(recompute, len(self.shapes))
        self.groups: list[Group] = []
        for layers in group_layers(kinds, self.shapes, recompute + 1 if recompute else 0):
            known = ConditioningLayers.of(layers[0], recompute, kinds)
            self.groups.append(Group.after(self.groups, layers, known, self.shapes))
        self.budget = Budget(settings.codec_share * model_bytes(shards), self.vocab_size, self.groups, self.shapes)
        self.sink = False

    def fit(self) -> TinyVAECodec:
        """Return the fitted codec, without promises."""
        return self.build(self.solve())

    def solve(self) -> list[Solved]:
        """Take the passes up to the ranks."""
        metrics, fishers = self._metrics()
        table = self._table(metrics)
        solved: list[Solved] = []
        for number, group in enumerate(self.groups):
            make = partial(self._solve_group, group, metrics[number], fishers[number], table, solved)
            made = self.working.tensors(f"group-{number}", make)
            solved.append(Solved.from_tensors(made, group, self.shapes, table, self.settings.prior_taps, self.sink))
        kept = [(self.settings.rank, SHARP_LATENTS)] * len(solved) if self.settings.rank else ranks(self.budget, solved)
        return [
            part.cut(min(rank, len(part.variances)), sharp) for part, (rank, sharp) in zip(solved, kept, strict=True)
        ]

    def _solve_group(
        self, group: Group, metric: Metric, fisher: Tensor, table: TokenTable, lower: Sequence[Solved]
    ) -> dict[str, Tensor]:
        """Pass 3: prior and transform of one group, as tensors by name."""
        return solve_group(
            self.shards,
            group,
            metric,
            fisher,
            table,
            lower,
            taps=self.settings.prior_taps,
            width=self.settings.prior_width or prior_units(self.budget),
            rank=self.settings.rank or self.budget.most_rank(group),
            sink=self.sink,
            rope=self.rope,
            is_last=group is self.groups[-1],
            progress=partial(self.progress, f"layers {group.layers[0]} to {group.layers[-1]}"),
        ).tensors()

    def _metrics(self) -> tuple[list[Metric], list[Tensor]]:
        """Pass 1: of each group the weight of the squared error and the Fisher matrix, both 1 on average."""
        found = self.working.tensors("sensitivity", self._gather_sensitivity)
        self.sink = bool(found["sink"])
        self.place_shares = found["place_shares"]
        fishers = [found[f"fisher.{number}"] for number in range(len(self.groups))]
        mean = sum(float(f.diagonal().double().sum()) for f in fishers) / sum(map(len, fishers))
        exponent = self.settings.fisher_exponent
        metrics = [sensitivity_weight(fisher.double(), exponent, mean=mean) for fisher in fishers]
        channels = sum(map(len, metrics))
        common = sum(float(metric.values.sum()) for metric in metrics) / channels
        # What an error costs in directions of unit weight, on average: the eigenvalues of F over those of its power.
        cost = common * sum(float((metric.values ** (1 / exponent - 1)).sum()) for metric in metrics) / channels
        return [metric.scaled(1 / common) for metric in metrics], [fisher.div_(cost) for fisher in fishers]

    def _gather_sensitivity(self) -> dict[str, Tensor]:
        chosen = self.shards.with_gradients
        shares = torch.zeros(PLACES, dtype=torch.float32)
        for number in chosen:
            energy = torch.zeros(self.shards.rows[number].tokens, dtype=torch.float32)
            for group in self.groups:
                rows = self.shards.gradients(number, group.layers)
                energy[len(energy) - len(rows) :] += rows.square().sum(1)
            shares[: len(energy)] += energy[:PLACES] / energy.sum().clamp(min=1e-30) / len(chosen)
        sink = is_sink(shares, sum(self.shards.rows[number].tokens for number in chosen) / max(1, len(chosen)))
        found = {"sink": torch.tensor(sink, dtype=torch.float32), "place_shares": shares}
        fishers = [Gram.empty(group.width(self.shapes)) for group in self.groups]
        coherence = [Coherence.empty(group.blocks(self.shapes)) for group in self.groups]
        for done, number in enumerate(chosen, 1):
            for group, fisher, common in zip(self.groups, fishers, coherence, strict=True):
                rows = self.shards.gradients(number, group.layers)
                rows = rows[1:] if sink and len(rows) == self.shards.rows[number].tokens else rows
                fisher.add(rows, 1 / max(1, len(rows)))
                common.add(rows)
            self.progress("sensitivity", done, len(chosen))
        for number, (fisher, common) in enumerate(zip(fishers, coherence, strict=True)):
            scale = common.scale(COMMON_SHARE)
            found[f"fisher.{number}"] = (scale[:, None] * fisher.matrix() * scale).float()
        return found

    def _table(self, metrics: Sequence[Metric]) -> TokenTable:
        """Pass 2: the token table, which all groups share."""
        columns = self.settings.prior_rank or prior_columns(self.budget, self.embeddings.shape[1])

        def make() -> dict[str, Tensor]:
            make_table = mean_table if table_pays(self.shards.tokens, self.vocab_size) else embedding_table
            scales = [metric.diagonal().sqrt().float() for metric in metrics]
            made = make_table(self.shards, self.groups, scales, columns, self.rope, self.sink, self.progress)
            return {"table": made.half()}

        found = self.working.tensors("table", make)["table"].float()
        table = TokenTable(self.vocab_size, found.shape[1])
        table.store(found)
        return table

    def build(self, solved: Sequence[Solved]) -> TinyVAECodec:
        """Assemble the codec and fit to it what `refit` fits."""
        codec = self._assemble(solved)
        self.refit(codec)
        return codec.eval()

    def refit(self, codec: TinyVAECodec) -> None:
        """Fit what follows from prior and transform: offsets; on sessions kept out prediction, levels, tables."""
        Refit(self.shards, self.levels, self.settings, self.sink, self.coarser, self.progress).run(codec)

    def _assemble(self, solved: Sequence[Solved]) -> TinyVAECodec:
        # One step for all groups: their latents are in the same unit, the model's output.
        step = 2.0 ** (self.coarser / LEVELS_PER_OCTAVE) * max(part.spread for part in solved)
        groups = []
        for group, part in zip(self.groups, solved, strict=True):
            config = TinyVAEConfig(
                blocks=group.blocks(self.shapes),
                vocab_size=self.vocab_size,
                rank=len(part.variances),
                prior_rank=part.prior.table.rank,
                prior_taps=self.settings.prior_taps,
                prior_width=part.prior.inward.columns,
                reference_step=step,
                lowest_level=self.settings.lowest_level,
                first=self.sink,
                sharp_latents=part.transform.synthesis.sharp_rows,
            )
            stated = {"layers": list(group.layers), "config": config.to_json()}
            groups.append(stated | group.conditioning.to_json() | group.lower.to_json())
        codec = TinyVAECodec(
            groups=groups,
            shapes=[[s.heads, s.key_size, s.value_size] for s in self.shapes],
            model=asdict(self.origin.fingerprint),
            recompute_layers=self.settings.recompute_layers,
            origin=replace(self.origin, next_position=0, dtype="float32").to_json(),
            shared_table=len(groups) > 1,
            fitted=self._facts(solved),
        )
        for index, part in enumerate(solved):
            vae = codec.vae(index)
            if index == 0:
                vae.prior.table.load_state_dict(part.prior.table.state_dict())
            vae.prior.load_state_dict(part.prior.state_dict(), strict=False)
            vae.transform.load_state_dict(part.transform.state_dict())
            if self.sink:
                fit_opening(vae.prior, *self.shards.first_tokens(codec.groups[index]), self._openings())
        return codec

    @property
    def coarser(self) -> int:
        """How many QPs coarser QP 0 is than the spread of the widest latent."""
        return COARSER_QPS if self.settings.recompute_layers or len(self.groups) > 1 else 0

    def _openings(self) -> Tensor:
        """Return the token id [n] that each session opens with."""
        return torch.stack([self.shards.token_ids(number)[0] for number in range(len(self.shards))])

    def _facts(self, solved: Sequence[Solved]) -> dict[str, Any]:
        return {
            "sessions": len(self.shards),
            "calibration_sessions": len(self.levels),
            "tokens": self.shards.tokens,
            "session_digests": [
                opening_digest(part.session(number))
                for part in (self.shards, self.levels)
                for number in range(len(part))
            ],
            "settings": asdict(self.settings),
            "sink_share": round(float(self.place_shares[0]), 4),
            "spectrum": [part.facts() for part in solved],
        }


PLACES = 16
"""Places at the start of a session whose share of the sensitivity is looked at."""


def require_coded_layers(recompute_layers: int, layers: int) -> None:
    """Raise `InputError` unless m recomputed layers leave one of `layers` to code; the next one comes with them."""
    if not 0 <= recompute_layers <= max(0, layers - 2):
        what = f"{recompute_layers} layers cannot be recomputed of a model that has {layers}"
        raise InputError(what, f"Choose 0 to {max(0, layers - 2)}")


def fit_codec(
    model: CausalLM, tokenizer: Tokenizer | None, sessions: Sequence[Tensor], settings: FitSettings, progress: Progress
) -> tuple[TinyVAECodec, list[Tensor]]:
    """Harvest sessions [N] int64 into a temporary directory, fit a codec to them, and return it without promises.

    With it come the sessions kept out of the fit, whole, on which its qualities can be measured.
    """
    if len(sessions) < LEAST_SESSIONS:
        raise InputError(f"{len(sessions)} sessions are too few to fit a codec", f"Give at least {LEAST_SESSIONS}")
    with tempfile.TemporaryDirectory(prefix="kvcompress-shards-") as directory:
        place, rows = Path(directory) / "shards", [(str(number), ids) for number, ids in enumerate(sessions)]
        harvest(model, tokenizer, rows, place, progress, settings=settings.harvest_settings())
        fitter = Fitter(Shards(place), settings, progress)
        codec = fitter.fit()
        kept = [sessions[int(row.id)] for row in fitter.calibration.rows]
    return codec, kept
