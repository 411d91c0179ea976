"""The last pass of a fit, after prior and transform: token offsets, prediction, levels and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.shards import Shards
from kvcompress.fit.first_place import fit_first_place
from kvcompress.fit.settings import FitSettings
from kvcompress.hf.channels import group_positions
from tinyvae import Context
from tinyvae.fit.calibration import CALIBRATION_QP, calibrate_group
from tinyvae.offsets import age_classes, fit_offsets
from tinyvae.tables import build_tables


@dataclass(frozen=True, slots=True)
class Refit:
    """The pass.

    Attributes:
        shards: Sessions whose gradients say what tokens are worth.
        levels: Sessions kept out of prior and transform, to which prediction, levels and tables are fitted.
        settings: Of the fit.
        sink: Whether place 0 is an attention sink.
        coarser: How many QPs coarser QP 0 is than the spread of the widest latent.
        progress: Called after each session.
    """

    shards: Shards
    levels: Shards
    settings: FitSettings
    sink: bool
    coarser: int
    progress: Callable[[str, int, int], None]

    def run(self, codec: TinyVAECodec) -> None:
        """Replace offsets, weights of the prediction, levels and tables of a codec."""
        self._fit_offsets(codec)
        samples = self._calibrate_groups(codec)
        pooled = torch.cat(samples)
        pick = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(self.settings.seed))
        codec.store_tables(*build_tables(pooled[pick[:400_000]]))

    def _fit_offsets(self, codec: TinyVAECodec) -> None:
        """What an error in each token costs, from gradients with respect to latents -> steps by age, id, place 0."""
        chosen, first = self.shards.with_gradients, 1 if self.sink else 0
        for number in range(len(codec.groups)):
            vae, rows = codec.vae(number), list[tuple[Tensor, Tensor, Tensor]]()
            opening = list[float]()
            for done, session in enumerate(chosen, 1):
                ids = self.shards.token_ids(session)
                gradients = self.shards.gradients(session, codec.groups[number])
                of_token = (gradients @ vae.transform.synthesis.dense.T).square().sum(1)
                place = torch.arange(len(ids) - len(of_token), len(ids))
                later = place >= first
                rows.append((ids[place][later], age_classes(len(ids))[place][later], of_token[later]))
                if first and int(place[0]) == 0:
                    opening.append(float(of_token[0] / of_token[1:].mean().clamp(min=1e-30)))
                self.progress(f"worth of tokens, group {number + 1}", done, len(chosen))
            of_id, of_age = fit_offsets(rows, vae.config.vocab_size, self.settings.importance_exponent)
            vae.token_offset.copy_(of_id)
            vae.age_offset.copy_(of_age)
            if vae.first_place is not None:
                fit_first_place(vae, opening, self.settings.importance_exponent)

    @torch.inference_mode()
    def _calibrate_groups(self, codec: TinyVAECodec) -> list[Tensor]:
        """Fit prediction and levels of each group on sessions kept out; return normalised samples for the tables."""
        found = self._calibration_latents(codec)
        decoded: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.levels.rows]
        samples = []
        qp = CALIBRATION_QP + self.coarser
        for number in range(len(codec.groups)):
            vae, rows = codec.vae(number), list[tuple[Tensor, Context]]()
            for session, (latents, context, places, tokens) in enumerate(found[number]):
                below = codec.lower[number].rows(decoded[session], places, tokens)
                context, latents = vae.given(context, latents.float(), below)
                rows.append((latents, context))
            samples.append(calibrate_group(vae, rows, self.settings.sample_rows, qp=qp, sink=self.sink))
            for session, (latents, context) in enumerate(rows):
                qps = torch.full_like(context.token_ids, qp, dtype=torch.int32)
                places = found[number][session][2]
                kept = max((count for lower in codec.lower for at, count in lower.groups if at == number), default=0)
                if kept:
                    shown = vae.quantized(latents, replace(context, lifts=None), qps)[2][:, :kept].clone()
                    decoded[session].append((places, shown))
                else:
                    decoded[session].append((places, latents[:, :0]))
            found[number].clear()
        return samples

    def _calibration_latents(self, codec: TinyVAECodec) -> list[list[tuple[Tensor, Context, Tensor, int]]]:
        """Return of each group and session kept out: latents [T, R], context, positions [T] and tokens."""
        found: list[list[tuple[Tensor, Context, Tensor, int]]] = [[] for _ in codec.groups]
        for session in range(len(self.levels)):
            snapshot = self.levels.snapshot(session)
            for number in range(len(codec.groups)):
                latents, context = codec.latents(snapshot, number)
                places = group_positions(snapshot, codec.groups[number])
                found[number].append((latents, context, places, snapshot.tokens))
            self.progress("latents of sessions kept out", session + 1, len(self.levels))
        return found
