"""The two trained stages of a codec as Lightning modules: bits and error, then bits and what the resumed model says.

```
rate stage        cache (shard) - prior(tokens) ─► analyse ─► - predicted from decoded ─► quantise ─► bits
                                           └──► what no symbol carries ──► its squared error in bits
divergence stage  cache (shard) ─► analyse ─► - prior - predicted ─► quantise ─► synthesise ─► resumed model ─► KL
                                                        └──► bits
```
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch import Tensor
from transformers import DynamicCache

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.fit.run import peak_bytes
from kvcompress.hf.forward import open_mask, run
from kvcompress.hf.generation import feed
from kvcompress.hf.restore import restore
from kvcompress.prune.constraints import drop
from kvcompress.snapshot import KVSnapshot
from kvcompress_train.coding import Coded, as_cached, coded_groups
from kvcompress_train.data import CachedSession
from kvcompress_train.prices import Prices
from kvcompress_train.recipe import CodecRecipe, Stage
from kvcompress_train.tiers import mixed_tiers
from tinyvae import TinyVAE
from tinyvae.fit.loss import divergence_nats, error_bits, trade
from tinyvae.quantize import steps_at
from tinyvae.transform import Transform, times_block_metric

WARMUP_SHARE = 0.05
VALIDATED_QPS = 3
"""Rates at which sessions kept apart are looked at, spread evenly over those trained for."""


class StageModule(lightning.LightningModule, ABC):
    """What both stages share: parameters, optimiser, schedule, figures.

    Args:
        codec: Trained in place.
        recipe: The recipe.
        stage: The stage's settings.
    """

    def __init__(self, codec: TinyVAECodec, recipe: CodecRecipe, stage: Stage) -> None:
        super().__init__()
        self.codec, self.recipe, self.stage = codec, recipe, stage
        self.last: dict[str, float] = {}
        self.prices, self._since = Prices.of(codec.bank), time.perf_counter()
        for group in range(len(codec.groups)):
            synthesis, table = stage.synthesis_rate > 0, recipe.train_table
            codec.vae(group).begin_training(with_synthesis=synthesis, with_table=table)
            codec.vae(group).transform.analysis_steps = recipe.analysis_steps

    def finish(self) -> TinyVAECodec:
        """Keep what was trained and return the codec; levels and tables have to be fitted to it again."""
        for group in range(len(self.codec.groups)):
            self.codec.vae(group).end_training()
        return self.codec

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave sessions where they are: a codec reads caches on the processor."""
        return batch

    def configure_optimizers(self) -> Any:
        """AdamW; fresh parts take absolute steps, the synthesis and where asked the prior steps of their own size."""
        groups = [
            {"params": [parameter], "lr": rate}
            for number in range(len(self.codec.groups))
            for parameter, rate in self._rates_of(self.codec.vae(number))
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rates_of(self, vae: TinyVAE) -> Iterator[tuple[torch.nn.Parameter, float]]:
        """Yield the parameters of a group with the highest learning rate of each."""
        synthesis = set(vae.transform.synthesis.parameters())
        fresh = {*vae.prior.blocks.parameters(), *(vae.predictor.parameters() if vae.predictor else ())}
        for parameter in (held for held in vae.parameters() if held.numel()):
            share = self.stage.synthesis_rate if parameter in synthesis else self.stage.prior_rate
            if share is None or parameter in fresh:
                yield parameter, self.stage.learning_rate
            else:
                yield parameter, share * float(parameter.detach().square().mean().sqrt())

    def _scale(self, step: int) -> float:
        warm = max(1, round(WARMUP_SHARE * self.stage.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, self.stage.steps - warm))))

    @abstractmethod
    def loss(self, session: CachedSession, qp: int, chance: torch.Generator | None) -> dict[str, Tensor]:
        """Return the `loss` of a session, `bits` a token, those of an `octave` of the step, and what else there is.

        Args:
            session: The session.
            qp: Quantisation parameter.
            chance: Draws tiers for its tokens; None codes all at the QP.
        """

    def training_step(self, batch: list[CachedSession], batch_idx: int) -> Tensor:
        """Return the mean loss over the sessions of a step."""
        chance = torch.Generator().manual_seed(hash((self.recipe.seed, self.global_step, self.global_rank)) % 2**31)
        low, high = self.recipe.lowest_qp, self.recipe.highest_qp
        qp = int(torch.randint(low, high + 1, (1,), generator=chance))
        mixed = float(torch.rand(1, generator=chance)) < self.recipe.mixed_share
        found = _meaned([self.loss(session, qp, chance if mixed else None) for session in batch])
        now = time.perf_counter()
        self.last = {name: float(value.detach()) for name, value in found.items()}
        self.last |= {"seconds": now - self._since, "peak_gigabytes": peak_bytes() / 1e9}
        self._since = now
        self.log_dict(self.last, prog_bar=True, batch_size=len(batch))
        return found["loss"]

    def on_validation_end(self) -> None:
        """Do not count as a step's what looking at sessions kept apart took."""
        self._since = time.perf_counter()

    def validation_step(self, batch: list[CachedSession], batch_idx: int) -> None:
        """Log the loss on sessions that are not trained on, at fixed QPs."""
        for name, value in self.looked_at(batch).items():
            self.log(f"validation_{name}", value, prog_bar=name == "loss", batch_size=len(batch), sync_dist=True)

    def looked_at(self, batch: list[CachedSession]) -> dict[str, Tensor]:
        """Return the figures of sessions, meaned over them and over fixed QPs."""
        low, high = self.recipe.lowest_qp, self.recipe.highest_qp
        qps = [low + (high - low) * (2 * number + 1) // (2 * VALIDATED_QPS) for number in range(VALIDATED_QPS)]
        return _meaned([self.judged(session, qp) for session in batch for qp in qps])

    def judged(self, session: CachedSession, qp: int) -> dict[str, Tensor]:
        """Return the figures of a session kept apart; its `loss` compares one state of training with another."""
        return self.loss(session, qp, None)


def treated(session: CachedSession, chance: torch.Generator | None) -> tuple[KVSnapshot, Tensor | None]:
    """Return the cache as it is stored and what is added to the QP of each token [N]; None adds nothing."""
    if chance is None:
        return session.snapshot, None
    tiers = mixed_tiers(session.snapshot.tokens, chance)
    return drop(session.snapshot, tiers.kept), tiers.offsets


class RateStage(StageModule):
    """Trains prior and prediction on the bits of harvested caches, and on the error of what no symbol carries.

    A latent whose symbol is 0 is what prior and prediction say, and what no latent reaches is what the prior says: the
    error there counts by what as much error costs in bits where latents are coded.

    Args:
        codec: Trained in place.
        recipe: The recipe.
        stage: The stage's settings.
    """

    def __init__(self, codec: TinyVAECodec, recipe: CodecRecipe, stage: Stage) -> None:
        super().__init__(codec, recipe, stage)
        self._grams = [_gram(codec.vae(group).transform) for group in range(len(codec.groups))]

    def loss(self, session: CachedSession, qp: int, chance: torch.Generator | None) -> dict[str, Tensor]:
        """Return bits and priced error a token, meaned over the session."""
        held, offsets = treated(session, chance)
        parts = [self._priced(coded) for coded in coded_groups(self.codec, held, qp, offsets)]
        bits, octave, error = (torch.stack([part[k] for part in parts]).sum() for k in range(3))
        return {"loss": bits + error, "bits": bits, "octave": octave, "error_bits": error}

    def _priced(self, coded: Coded) -> tuple[Tensor, Tensor, Tensor]:
        vae = self.codec.vae(coded.group)
        step = steps_at(vae.config.reference_step, coded.qps)
        bits, octave = self.prices.bits(coded.residuals, step, coded.levels)
        left = coded.channels - vae.prior.expected(coded.context.hidden)
        whole = (times_block_metric(left, vae.transform.metric.dense, vae.config.blocks) * left).sum(1)
        within = ((coded.latents @ self._grams[coded.group]) * coded.latents).sum(1)  # latents are a least-squares fit
        squares = (whole - within).clamp(min=0)
        unsaid = coded.residuals.masked_fill(coded.spoken, 0.0).square().sum(1)
        return bits.mean(), octave.mean(), error_bits(squares + unsaid, step).mean()


class DivergenceStage(StageModule):
    """Trains prior, prediction and synthesis on bits and on the KL of the model resumed from the decoded cache.

    Args:
        codec: Trained in place.
        model: The frozen language model.
        recipe: The recipe.
        stage: The stage's settings.
    """

    def __init__(self, codec: TinyVAECodec, model: Any, recipe: CodecRecipe, stage: Stage) -> None:
        super().__init__(codec, recipe, stage)
        self._frozen = [model.eval().requires_grad_(False)]  # in a list: no part of the module, its checkpoints or DDP
        count = recipe.highest_qp - recipe.lowest_qp + 1
        self.register_buffer("usual_nats", torch.zeros(count))

    def loss(self, session: CachedSession, qp: int, chance: torch.Generator | None) -> dict[str, Tensor]:
        """Return bits and the worth of the divergence, meaned over the session."""
        model, snapshot = self._frozen[0], session.snapshot
        exact = feed(model, restore(snapshot, model), session.continuation, snapshot.tokens)
        held, offsets = treated(session, chance)
        coded = list(coded_groups(self.codec, held, qp, offsets))
        bits, octave = self._spent(coded, snapshot.tokens)
        cache = self._cache(as_cached(self.codec, held, coded), snapshot.tokens)
        ids = session.continuation[None]
        positions = torch.arange(snapshot.tokens, snapshot.tokens + ids.shape[1])[None]
        decoded = run(model, ids, cache, position_ids=positions, attention_mask=open_mask(cache, ids))[0]
        divergence = divergence_nats(exact, decoded)
        usual = self._usual(qp, float(divergence.detach()), learn=self.training and offsets is None)
        return {"loss": trade(bits, octave, divergence, usual), "bits": bits, "octave": octave, "kl_nats": divergence}

    def judged(self, session: CachedSession, qp: int) -> dict[str, Tensor]:
        """Return the figures with a loss that does not hang on what divergence is usual at this point of training."""
        found = self.loss(session, qp, None)
        nats = found["kl_nats"].clamp(min=1e-12)
        return found | {"loss": found["bits"] + 0.5 * found["octave"] * torch.log2(nats)}

    def _spent(self, coded: list[Coded], tokens: int) -> tuple[Tensor, Tensor]:
        steps = [steps_at(self.codec.vae(one.group).config.reference_step, one.qps) for one in coded]
        found = [self.prices.bits(one.residuals, step, one.levels) for one, step in zip(coded, steps, strict=True)]
        bits, octave = (torch.stack([part[k].sum() for part in found]).sum() / tokens for k in (0, 1))
        return bits, octave

    def _cache(self, layers: list[tuple[Tensor, Tensor]], tokens: int) -> DynamicCache:
        model = self._frozen[0]
        cache = DynamicCache(config=model.config)
        for index, (keys, values) in enumerate(layers):
            cache.update(keys.to(model.device, model.dtype), values.to(model.device, model.dtype), index)
            slot: Any = cache.layers[index]
            if hasattr(slot, "cumulative_length"):
                slot.cumulative_length = tokens
        return cache

    def _usual(self, qp: int, now: float, *, learn: bool) -> Tensor:
        """Return the running mean of the divergence around a QP; what is learnt includes this step."""
        usual, place = self.get_buffer("usual_nats"), qp - self.recipe.lowest_qp
        if learn or float(usual[place]) == 0:
            span = slice(max(0, place - 4), place + 5)
            usual[span] = torch.where(usual[span] == 0, now, 0.9 * usual[span] + 0.1 * now)
        return usual[place].clone()


@torch.no_grad()
def _gram(transform: Transform) -> Tensor:
    """Return the squared error [R, R] float32 that latents stand for, in the metric that is stored."""
    synthesis = transform.synthesis.dense
    return times_block_metric(synthesis, transform.metric.dense, transform.blocks) @ synthesis.T


def _meaned(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
