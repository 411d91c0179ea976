"""Make a codec by a recipe: closed form, two trained stages, levels and tables again, promises, card.

What a run has done so far lies beside its result, and a run that was cut off goes on where it was:

```
OUT/                                       the codec: config.json, model.safetensors, README.md
OUT.run/closed-form/, rate/, divergence/   the codec before training, and after each stage
OUT.run/harvest/                           caches, where sessions were given and not shards
OUT.run/steps/STAGE/                       Lightning's last and best checkpoint of a stage
OUT.run/logs/                              curves, for wandb or as CSV
```
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from kvcompress.codec.directory import load_tinyvae
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import harvest, tokenized_sessions
from kvcompress.data.shards import INDEX, Shards
from kvcompress.errors import InputError
from kvcompress.fit.checkpoint import save_codec, stored_in_words
from kvcompress.fit.fitter import Fitter
from kvcompress.fit.run import PASSES, peak_bytes, verify
from kvcompress.fit.working import Working
from kvcompress.format.atomic import atomic_write
from kvcompress.hf import fingerprint, load_model
from kvcompress_train.data import ShardSessions
from kvcompress_train.guard import Guard
from kvcompress_train.module import DivergenceStage, RateStage, StageModule
from kvcompress_train.recipe import CodecRecipe, Stage
from tinyvae.prior import CausalBlock

Progress = Callable[[str, int, int], None]
SHORTEST_TOKENS = 16


class CodecRun:
    """One run.

    Args:
        recipe: What decides the weights.
        model: Directory or bundled name of the model.
        sessions: JSON lines of recorded sessions, to be harvested; None where shards are given.
        shards: A finished harvest; None where sessions are given.
        out: Directory of the codec and of the run's state.
        progress: Called with stage, done, total.

    Raises:
        InputError: Neither sessions nor shards, or both.
        MismatchError: The shards are of another model.
    """

    def __init__(
        self, recipe: CodecRecipe, model: str, sessions: Path | None, shards: Path | None, out: Path, progress: Progress
    ) -> None:
        if (sessions is None) == (shards is None):
            raise InputError("training needs either --sessions or --shards", "Give one of them")
        self.recipe, self.sessions, self.out, self.progress = recipe, sessions, out, progress
        self.model_name, self.state = model, out.with_name(out.name + ".run")
        self.model, self.tokenizer = load_model(model)
        self.shards = Shards(shards) if shards is not None else self._harvested()
        self.shards.origin.fingerprint.require_match(fingerprint(self.model, self.tokenizer), path=shards)
        self._require_same_run()
        key = {"passes": PASSES, "settings": asdict(recipe.fit), "shards": self.shards.settings}
        self.passes = Working(self.state / "passes", key) if self._is_first else Working(None)
        self.fitter = Fitter(self.shards, recipe.fit, progress, self.passes)

    def _require_same_run(self) -> None:
        """Raise `InputError` where what an earlier run left is of another recipe or of other sessions."""
        decides = {key: value for key, value in self.recipe.to_json().items() if key not in ("devices", "logger")}
        index = (self.shards.directory / INDEX).read_text(encoding="utf-8")
        stated = {"recipe": decides, "sessions": hashlib.sha256(index.encode()).hexdigest()}
        place = self.state / "run.json"
        if place.is_file() and json.loads(place.read_text()) != json.loads(json.dumps(stated)):
            remedy = "Take the recipe and sessions that it began with, another output, or remove it"
            raise InputError("holds a run of another recipe or of other sessions", remedy, path=self.state)
        if self._is_first and not place.is_file():
            self.state.mkdir(parents=True, exist_ok=True)
            atomic_write(place, [json.dumps(stated).encode()], force=True)

    def _harvested(self) -> Shards:
        """Return the harvest of the run, made where it is not there yet; other processes wait for the first."""
        place = self.state / "harvest"
        while not self._is_first and not (place / INDEX).is_file():
            time.sleep(1.0)
        if not (place / INDEX).is_file():
            assert self.sessions is not None
            rows = tokenized_sessions(self.model, self.tokenizer, self.sessions)
            usable = [(session.id, ids) for session, ids in rows if len(ids) >= SHORTEST_TOKENS]
            settings = self.recipe.fit.harvest_settings()
            harvest(self.model, self.tokenizer, usable, place, self.progress, settings=settings)
        return Shards(place)

    def run(self) -> dict[str, Any]:
        """Do what is left to do and return a summary."""
        started = time.perf_counter()
        codec = self._step("closed-form", self.fitter.fit)
        stages = {"rate": self.recipe.rate_stage, "divergence": self.recipe.divergence_stage}
        taken = [name for name, stage in stages.items() if stage.steps]
        if taken:
            codec = with_learned_parts(codec, self.recipe)
        for name in taken:
            codec = self._step(name, partial(self._trained, name, codec))
        if not self._is_first:
            return {}
        self._finish(codec)
        return self._summary(codec, time.perf_counter() - started)

    @property
    def _is_first(self) -> bool:
        """Whether this process writes files: of several in data-parallel training only one does."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def _step(self, name: str, make: Callable[[], TinyVAECodec]) -> TinyVAECodec:
        """Return the codec that a step left in the run's directory, or take the step."""
        directory = self.state / name
        if (directory / "config.json").exists():
            return load_tinyvae(directory)
        codec = make()
        if self._is_first:
            save_codec(codec, directory)
        return codec

    def _trained(self, name: str, codec: TinyVAECodec) -> TinyVAECodec:
        """Return the codec after a stage; as it was where training found nothing better."""
        if name == "rate":
            return self._train(RateStage(codec, self.recipe, self.recipe.rate_stage), name)
        return self._train(DivergenceStage(codec, self.model, self.recipe, self.recipe.divergence_stage), name)

    def _train(self, module: StageModule, name: str) -> TinyVAECodec:
        directory = self.state / "steps" / name
        directory.mkdir(parents=True, exist_ok=True)
        learnt = self._loader(module, self.fitter.shards, self.recipe.seed)
        apart = self._loader(module, self.fitter.levels)
        lightning.seed_everything(self.recipe.seed, verbose=False)
        best = _checkpoints(directory, "best", monitor="validation_loss", save_top_k=1)
        trainer = lightning.Trainer(
            accelerator="cpu",  # a codec's tensors are made there
            devices=self.recipe.devices,
            strategy=_data_parallel() if self.recipe.devices > 1 else "auto",
            max_steps=module.stage.steps,
            max_epochs=-1,
            logger=self._logger(name),
            log_every_n_steps=10,
            val_check_interval=min(self.recipe.validate_steps, module.stage.steps),
            check_val_every_n_epoch=None,
            gradient_clip_val=1.0 if name == "rate" else 20.0,
            callbacks=[
                Guard(),
                NextEpoch(),
                *_averaged(module.stage),
                LearningRateMonitor("step"),
                EarlyStopping("validation_loss", patience=self.recipe.patience),
                best,
                _checkpoints(directory, "last", every_n_train_steps=50, save_last=True, save_top_k=0),
                TQDMProgressBar(refresh_rate=10),
            ],
            enable_model_summary=False,
            inference_mode=False,  # what is cached while looking at sessions kept apart is used in training
            num_sanity_val_steps=0,
        )
        last, initial = directory / "last.ckpt", _weights(module)
        before = self._looked_at(module, apart, directory / "before.json")
        trainer.fit(module, learnt, apart, ckpt_path=str(last) if last.exists() else None, weights_only=False)
        found = [(before, initial), (self._looked_at(module, apart, directory / "after.json"), _weights(module))]
        if best.best_model_score is not None:
            weights = torch.load(best.best_model_path, weights_only=False)["state_dict"]
            found.append((float(best.best_model_score), weights))
        least, kept = min(found, key=lambda pair: pair[0])
        module.load_state_dict(kept)
        codec, steps = module.finish(), trainer.global_step
        told = {"steps": steps, "gained_bits_per_token": round(before - least, 2)}
        codec.fitted["trained"] = codec.fitted.get("trained", {}) | {name: told}
        _announce(f"{name}: {before - least:.1f} bits a token gained on sessions kept apart, {steps} steps")
        return codec

    def _looked_at(self, module: StageModule, apart: DataLoader[Any], place: Path) -> float:
        """Return the loss on sessions kept apart; the first process looks, the others wait for what it says."""
        if self._is_first and not place.exists():
            module.eval()
            with torch.no_grad():
                found = [float(module.looked_at(batch)["loss"]) for batch in apart]
            module.train()
            atomic_write(place, [json.dumps(sum(found) / len(found)).encode()], force=True)
        while not place.exists():
            time.sleep(1.0)
        return float(json.loads(place.read_text()))

    def _loader(self, module: StageModule, shards: Shards, seed: int | None = None) -> DataLoader[Any]:
        sessions = ShardSessions(shards, self.recipe.continuation_tokens, seed)
        size = module.stage.sessions if seed is not None else 1
        return DataLoader(sessions, batch_size=size, shuffle=seed is not None, collate_fn=list)

    def _logger(self, name: str) -> Logger:
        directory = self.state / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        if self.recipe.logger == "csv":
            return CSVLogger(directory, name=name)
        if find_spec("wandb") is None:
            remedy = 'pip install "kvcompress[train]", or pass --logger csv'
            raise InputError("wandb is not installed", remedy)
        online = os.environ.get("WANDB_MODE") == "online"
        config = self.recipe.to_json()
        return WandbLogger(name, project="kvcompress-codec", save_dir=str(directory), offline=not online, config=config)

    def _finish(self, codec: TinyVAECodec) -> None:
        """Fit offsets, prediction, levels and tables to the trained codec, measure what it can promise, and save it."""
        self.fitter.refit(codec)
        codec.fitted |= {"recipe": self.recipe.to_json()}
        verify(codec, self.model, self.tokenizer, self.shards, self.passes, self.progress, _announce)
        save_codec(codec, self.out)

    def _summary(self, codec: TinyVAECodec, seconds: float) -> dict[str, Any]:
        return {
            "output": str(self.out),
            "model": self.model_name,
            "sessions": len(self.fitter.shards),
            "seconds": seconds,
            "peak_bytes": peak_bytes(),
            "file_bytes": (self.out / "model.safetensors").stat().st_size,
            "promises": stored_in_words(codec),
            "fingerprint": codec.fingerprint,
        }


def _weights(module: StageModule) -> dict[str, Any]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def _announce(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _checkpoints(directory: Path, name: str, **when: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=directory, filename=name, enable_version_counter=False, **when)


def _averaged(stage: Stage) -> list[Callback]:
    """Return what keeps a running mean of the weights, where a stage has one; buffers are integers and no mean."""
    return [EMAWeightAveraging(decay=stage.averaging, use_buffers=False)] if stage.averaging else []


def _data_parallel() -> DDPStrategy:
    """Return data parallelism that leaves buffers alone: all processes read the same codec, and gloo knows no int16."""
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, init_sync=False)


class NextEpoch(lightning.Callback):
    """Tells the sessions which epoch it is, so that they are cut anew."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Set it."""
        trainer.train_dataloader.dataset.epoch = trainer.current_epoch


def with_learned_parts(codec: TinyVAECodec, recipe: CodecRecipe) -> TinyVAECodec:
    """Return the codec with fresh causal layers in its prior and a fresh predictor, which change nothing yet."""
    config = codec.config_json()
    for group in config["groups"]:
        group["config"] |= {"prior_layers": recipe.prior_layers, "predictor_width": recipe.predictor_width}
    deeper = TinyVAECodec(**config)
    state = deeper.state_dict() | codec.state_dict()
    deeper.load_state_dict(state)
    generator = torch.Generator().manual_seed(recipe.seed)
    for group in range(len(deeper.groups)):
        vae = deeper.vae(group)
        for block in vae.prior.blocks:
            assert isinstance(block, CausalBlock)
            block.start(generator)
        if vae.predictor is not None:
            vae.predictor.start(generator)
    return deeper.eval()
