"""The two trained stages of a codec as Lightning modules: bits, then bits and divergence of the resumed model.

```
rate stage        caches (harvested) - prior(tokens) ─► analyse ─► - predicted from decoded ──► bits
                                           └──► what no latent reaches ──► its squared error in bits
divergence stage  cache ─► analyse ─► - prior - predicted ─► quantize ─► synthesise ─► RoPE ─► resumed model ─► KL
                                              └──► bits
```
"""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor
from transformers import DynamicCache

from kvcompress.channels import from_channels, group_positions, to_channels
from kvcompress.codec import TinyVAECodec, rope_of
from kvcompress.hf import capture
from kvcompress.hf.forward import run
from kvcompress.hf.restore import restore
from kvcompress.resume import feed
from kvcompress.snapshot import KVSnapshot
from tinyvae import Context, TinyVAE
from tinyvae.loss import divergence_nats, error_bits, rate_bits, trade
from tinyvae.neighbours import phases
from tinyvae.quantize import dequantize, quantize, steps_at
from tinyvae.transform import times_block_metric
from train.codec.recipe import CodecRecipe, Stage

WARMUP_SHARE = 0.05


class StageModule(lightning.LightningModule):
    """What both stages share: parameters, optimiser, schedule, figures.

    Args:
        codec: Trained in place.
        recipe: The recipe.
        stage: The stage's dials.
    """

    def __init__(self, codec: TinyVAECodec, recipe: CodecRecipe, stage: Stage) -> None:
        super().__init__()
        self.codec, self.recipe, self.stage = codec, recipe, stage
        self.last: dict[str, float] = {}
        for group in range(len(codec.groups)):
            codec.vae(group).begin_training(with_synthesis=stage.synthesis_rate > 0)

    def finish(self) -> TinyVAECodec:
        """Keep what was trained and return the codec; levels and tables have to be fitted to it again."""
        for group in range(len(self.codec.groups)):
            self.codec.vae(group).end_training()
        return self.codec

    def configure_optimizers(self) -> Any:
        """AdamW on prior and prediction, on the synthesis steps in units of its size; a cosine over the stage."""
        groups: list[dict[str, Any]] = []
        for number in range(len(self.codec.groups)):
            vae = self.codec.vae(number)
            synthesis = list(vae.transform.synthesis.parameters())
            others = [p for p in vae.parameters() if all(p is not matrix for matrix in synthesis)]
            groups.append({"params": others, "lr": self.stage.learning_rate})
            for matrix in synthesis:
                size = float(matrix.detach().square().mean().sqrt())
                groups.append({"params": [matrix], "lr": self.stage.synthesis_rate * size})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _scale(self, step: int) -> float:
        warm = max(1, round(WARMUP_SHARE * self.stage.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, self.stage.steps - warm))))

    def _rate(self) -> int:
        """Return a rate index to train this step at; the same for all sessions of a step."""
        chance = torch.Generator().manual_seed(hash((self.recipe.seed, self.global_step, self.global_rank)) % 2**31)
        low, high = self.recipe.lowest_rate, self.recipe.highest_rate
        return int(torch.randint(low, high + 1, (1,), generator=chance))

    def _report(self, loss: Tensor, bits: Tensor, coded: Tensor, **others: float) -> Tensor:
        self.last = {
            "loss": float(loss.detach()),
            "bits_per_token": float(bits.detach().mean()),
            "coded_latents": float(coded.mean()),
            **others,
        }
        self.log_dict(self.last, prog_bar=True)
        return loss


class RateStage(StageModule):
    """Trains prior and prediction on the bits of harvested caches.

    Where no latent reaches, the prior's error stays in the decoded cache: it counts by what as much error costs in bits
    where it is coded.
    """

    def training_step(self, batch: list[dict[str, Tensor]], batch_idx: int) -> Tensor:
        """Return the mean smooth bits of a token over the sessions of a step."""
        bits, coded = self._bits(batch, self._rate())
        return self._report(bits.mean(), bits, coded)

    def validation_step(self, batch: list[dict[str, Tensor]], batch_idx: int) -> None:
        """Log the same at the middle of the rates, on sessions that are not trained on."""
        middle = (self.recipe.lowest_rate + self.recipe.highest_rate) // 2
        bits, _ = self._bits(batch, middle)
        self.log("validation_bits_per_token", bits.mean(), prog_bar=True, batch_size=len(batch), sync_dist=True)

    def _bits(self, batch: list[dict[str, Tensor]], rate: int) -> tuple[Tensor, Tensor]:
        found = [self._session(session, group, rate) for session in batch for group in range(len(self.codec.groups))]
        return torch.cat([bits for bits, _ in found]), torch.cat([coded for _, coded in found])

    def _session(self, session: dict[str, Tensor], group: int, rate: int) -> tuple[Tensor, Tensor]:
        vae, ids, places = self.codec.vae(group), session["token_ids"], session[f"places.{group}"]
        known = session.get(f"known.{group}")
        below = session.get(f"below.{group}")
        context = vae.context(ids, None if known is None else known.float(), places)
        context = vae.below(context, None if below is None else below.float())
        left = session[f"channels.{group}"].float() - vae.prior.expected(context.hidden)
        latents = vae.transform.analyse(left)
        beyond = left - vae.transform.synthesise(latents, torch.zeros_like(left))
        squares = (times_block_metric(beyond, vae.transform.metric.dense, vae.config.blocks) * beyond).sum(1)
        rates = vae.rates(ids, rate)[places]
        steps = steps_at(vae.config.reference_step, rates)
        innovations, _ = coded_latents(vae, latents, context, rates)
        bits, coded = rate_bits(innovations, steps)
        return bits + error_bits(squares, steps), coded


class DivergenceStage(StageModule):
    """Trains prior, prediction and synthesis on bits and on the KL of the model resumed from the decoded cache.

    Args:
        codec: Trained in place.
        model: The frozen language model.
        recipe: The recipe.
        stage: The stage's dials.
    """

    def __init__(self, codec: TinyVAECodec, model: Any, recipe: CodecRecipe, stage: Stage) -> None:
        super().__init__(codec, recipe, stage)
        self._frozen = [model.eval().requires_grad_(False)]  # in a list: no part of the module, its checkpoints or DDP
        count = recipe.highest_rate - recipe.lowest_rate + 1
        self.register_buffer("usual_nats", torch.zeros(count))

    def training_step(self, batch: list[tuple[Tensor, int]], batch_idx: int) -> Tensor:
        """Return bits and the worth of the divergence, meaned over the sessions of a step."""
        rate = self._rate()
        parts = [self._session(ids, cut, rate) for ids, cut in batch]
        bits, coded = (torch.cat([part[k] for part in parts]) for k in (0, 1))
        divergence = torch.stack([part[2] for part in parts]).mean()
        loss = trade(bits, coded, divergence, self._usual(rate, float(divergence.detach())))
        return self._report(loss, bits, coded, kl_nats=float(divergence.detach()))

    def _usual(self, rate: int, now: float) -> Tensor:
        """Return the running mean of the divergence around a rate, this step included."""
        usual, place = self.usual_nats, rate - self.recipe.lowest_rate
        span = slice(max(0, place - 4), place + 5)
        usual[span] = torch.where(usual[span] == 0, now, 0.9 * usual[span] + 0.1 * now)
        return usual[place].clone()

    def _session(self, ids: Tensor, cut: int, rate: int) -> tuple[Tensor, Tensor, Tensor]:
        model = self._frozen[0]
        with torch.no_grad():
            snapshot = capture(model, ids[:cut])
            exact = feed(model, restore(snapshot, model, check_fingerprint=False), ids[cut:], cut)
        bits, coded, cache = torch.zeros(1), torch.zeros(1), DynamicCache(config=model.config)
        layers = {i: (layer.keys[None], layer.values[None]) for i, layer in self.codec.known_layers(snapshot).items()}
        below = self.codec.below(snapshot, rate)
        for group in range(len(self.codec.groups)):
            spent, counted, channels = coded_channels(self.codec, group, snapshot, rate, below[group])
            bits, coded = bits + spent.sum() / cut, coded + counted.sum() / cut
            layers |= _as_cached(self.codec, group, snapshot, channels)
        for index in range(len(layers)):
            cache.update(*layers[index], index)
            slot: Any = cache.layers[index]
            if hasattr(slot, "cumulative_length"):
                slot.cumulative_length = cut
        positions = torch.arange(cut, len(ids))[None]
        decoded = run(model, ids[None, cut:], cache, position_ids=positions)[0]
        return bits, coded, divergence_nats(exact, decoded)


def coded_latents(vae: TinyVAE, latents: Tensor, context: Context, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Code latents [T, R] as the codec does, phase by phase, with gradients past the quantiser.

    The symbols are those that the encoder would write. Gradients take a latent whose symbol is not 0 as it was before
    rounding (straight through), and one whose symbol is 0 as what prior and prediction say: there these alone decide
    what later tokens and the model see.

    Returns:
        What prediction leaves to code and what the decoder has, both [T, R].
    """
    levels = vae.levels(context.token_ids, rates, context.lifts)
    step = steps_at(vae.config.reference_step, rates)
    levels = torch.nn.functional.pad(levels, (0, latents.shape[1] - levels.shape[1]), value=-1)
    decoded, innovations = latents.new_zeros(len(latents) + 1, latents.shape[1]), torch.zeros_like(latents)
    for phase in phases(context.token_ids):
        span = phase.span
        predicted = vae.predicted(decoded, phase, context, rates)
        innovation = latents[span] - predicted
        symbols = quantize(innovation.detach(), step[span], levels[span])
        spoken = predicted + dequantize(symbols, step[span], levels[span], vae.centroids)
        straight = spoken.detach() + latents[span] - latents[span].detach()
        decoded = decoded.index_copy(0, phase.rows, torch.where(symbols != 0, straight, predicted))
        innovations = innovations.index_copy(0, phase.rows, innovation)
    return innovations, decoded[:-1]


def coded_channels(
    codec: TinyVAECodec, group: int, snapshot: KVSnapshot, rate: int, below: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Code the channels of a group as the codec does, with gradients as in `coded_latents`.

    Args:
        codec: The codec.
        group: Index of the group.
        snapshot: The cache.
        rate: Rate index.
        below: [T, B] float32, what is decoded of lower groups, as `TinyVAECodec.below` gives it; a constant here.

    Returns:
        Smooth bits [T], smooth counts of coded latents [T], channels [T, C].
    """
    vae, layers = codec.vae(group), codec.groups[group]
    place = group_positions(snapshot, layers)
    rates = codec.rates(group, snapshot.token_ids, rate)[place]
    context = vae.below(vae.context(snapshot.token_ids, codec.known_rows(snapshot, group), place), below)
    latents = vae.analyse(context, to_channels(snapshot, layers, rope_of(snapshot.origin)))
    innovations, decoded = coded_latents(vae, latents, context, rates)
    bits, coded = rate_bits(innovations, steps_at(vae.config.reference_step, rates))
    return bits, coded, vae.synthesise(context, decoded)


def _as_cached(
    codec: TinyVAECodec, group: int, snapshot: KVSnapshot, channels: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return keys and values [1, H, T, D] of each layer of a group, RoPE applied, with gradients."""
    layers, place = codec.groups[group], group_positions(snapshot, codec.groups[group])
    rope = rope_of(snapshot.origin)
    rebuilt = from_channels(channels, layers, codec.shapes, place, rope, snapshot.origin.dtype)
    return {index: (layer.keys[None], layer.values[None]) for index, layer in rebuilt.items()}
