"""Make a codec by a recipe: closed form, two trained stages, levels and tables again, tiers, card.

What a run has done so far lies beside its result, and a run that was cut off goes on where it was:

```
OUT/                           the codec: config.json, model.safetensors, README.md
OUT.run/closed-form/, rate/    the codec before training, and after the first stage
OUT.run/shards/                harvested caches
OUT.run/steps/STAGE/           Lightning's last checkpoint of a stage
OUT.run/logs/                  curves, for wandb or as CSV
```
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from kvcompress.calibrate import TooFewSessionsError
from kvcompress.checkpoint import finish_codec, save_codec, stored_in_words
from kvcompress.codec import TinyVAECodec
from kvcompress.codec_directory import load_tinyvae
from kvcompress.errors import InputError
from kvcompress.fit import Fitter
from kvcompress.harvest import harvest, tokenized_sessions
from kvcompress.hf import load_model
from kvcompress.shards import INDEX, Shards
from kvcompress.trials import trials_from_sessions
from kvcompress.working import Working
from train.codec.data import Cuts, Split, harvest_channels, split_sessions
from train.codec.guard import Guard
from train.codec.module import DivergenceStage, RateStage, StageModule
from train.codec.recipe import CodecRecipe

Progress = Callable[[str, int, int], None]
SHORTEST_TOKENS = 16


class CodecRun:
    """One run.

    Args:
        recipe: What decides the weights.
        model: Directory or bundled name of the model.
        sessions: JSON lines of recorded sessions.
        out: Directory of the codec and of the run's state.
        progress: Called with stage, done, total.
    """

    def __init__(self, recipe: CodecRecipe, model: str, sessions: Path, out: Path, progress: Progress) -> None:
        self.recipe, self.sessions, self.out, self.progress = recipe, sessions, out, progress
        self.model_name, self.state = model, out.with_name(out.name + ".run")
        self.model, self.tokenizer = load_model(model)
        rows = tokenized_sessions(self.model, self.tokenizer, sessions)
        self.usable = [(session.id, ids) for session, ids in rows if len(ids) >= SHORTEST_TOKENS]
        passes = Working(self.state / "passes", recipe.to_json()) if self._is_first else None
        self.fitter = Fitter(self._shards(), recipe.fit, progress, passes)

    def _shards(self) -> Shards:
        """Return the harvest of the run, made where it is not there yet; other processes wait for the first."""
        place = self.state / "harvest"
        while not self._is_first and not (place / INDEX).is_file():
            time.sleep(1.0)
        if not (place / INDEX).is_file():
            settings = self.recipe.fit.harvest_settings()
            harvest(self.model, self.tokenizer, self.usable, place, self.progress, settings=settings)
        return Shards(place)

    def _kept_out(self) -> list[Tensor]:
        """Return the sessions [N] int64 on which levels and promises are measured, whole."""
        names = {row.id for row in self.fitter.calibration.rows}
        return [ids for name, ids in self.usable if name in names]

    def run(self) -> dict[str, Any]:
        """Do what is left to do and return a summary."""
        started = time.perf_counter()
        codec = self._step("closed-form", self._closed_form)
        trained = self.recipe.rate_stage.steps or self.recipe.divergence_stage.steps
        if trained:
            split = split_sessions(self.model, self.tokenizer, self.sessions, self.recipe.seed, self._kept_out())
            codec = self._step("rate", lambda: self._rate_stage(codec, split))
            codec = self._divergence_stage(codec, split)
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

    def _closed_form(self) -> TinyVAECodec:
        return self.fitter.fit()

    def _rate_stage(self, start: TinyVAECodec, split: Split) -> TinyVAECodec:
        codec, stage = with_learned_parts(start, self.recipe), self.recipe.rate_stage
        if not stage.steps:
            return codec
        shards = self.state / "shards"
        parts = [
            harvest_channels(self.model, start, rows, shards / name, self.progress)
            for name, rows in (("train", split.train), ("validation", split.validation))
        ]
        loaders = [
            DataLoader(part, batch_size=stage.sessions, shuffle=shuffle, collate_fn=list, drop_last=shuffle)
            for part, shuffle in zip(parts, (True, False), strict=True)
        ]
        return self._train(RateStage(codec, self.recipe, stage), "rate", *loaders)

    def _divergence_stage(self, codec: TinyVAECodec, split: Split) -> TinyVAECodec:
        stage = self.recipe.divergence_stage
        if not stage.steps:
            return codec
        cuts = Cuts(split.train, self.recipe.prefix_tokens, self.recipe.continuation_tokens, self.recipe.seed)
        loader = DataLoader(cuts, batch_size=stage.sessions, shuffle=True, collate_fn=list, drop_last=True)
        return self._train(DivergenceStage(codec, self.model, self.recipe, stage), "divergence", loader)

    def _train(self, module: StageModule, name: str, *loaders: Any) -> TinyVAECodec:
        directory = self.state / "steps" / name
        last = directory / "last.ckpt"
        lightning.seed_everything(self.recipe.seed, verbose=False)
        trainer = lightning.Trainer(
            accelerator="cpu" if not torch.cuda.is_available() else "auto",
            devices=self.recipe.devices,
            strategy=_data_parallel() if self.recipe.devices > 1 else "auto",
            max_steps=module.stage.steps,
            max_epochs=-1,
            logger=self._logger(name),
            log_every_n_steps=10,
            val_check_interval=None,
            check_val_every_n_epoch=4,
            gradient_clip_val=1.0 if name == "rate" else 20.0,
            callbacks=[
                Guard(),
                NextEpoch(),
                LearningRateMonitor("step"),
                ModelCheckpoint(
                    dirpath=directory,
                    every_n_train_steps=100,
                    save_last=True,
                    save_top_k=0,
                    enable_version_counter=False,
                ),
                TQDMProgressBar(refresh_rate=10),
            ],
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        resumed = str(last) if last.exists() else None
        trainer.fit(module, *loaders, ckpt_path=resumed, weights_only=False)
        return module.finish().cpu()

    def _logger(self, name: str) -> Logger:
        directory = self.state / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        if self.recipe.logger == "csv":
            return CSVLogger(directory, name=name)
        if find_spec("wandb") is None:
            remedy = 'Install it with `pip install -e ".[train]"`, or pass --logger csv'
            raise InputError("wandb is not installed", remedy)
        online = os.environ.get("WANDB_MODE") == "online"
        config = self.recipe.to_json()
        return WandbLogger(name, project="kvcompress-codec", save_dir=str(directory), offline=not online, config=config)

    def _finish(self, codec: TinyVAECodec) -> None:
        """Fit offsets, prediction, levels and tables to the trained codec, measure its tiers, and save it."""
        self.fitter.refit(codec)
        codec.fitted |= {"recipe": self.recipe.to_json()}
        trials = trials_from_sessions(self.model, self._kept_out(), self.tokenizer)
        try:
            finish_codec(codec, self.model, self.tokenizer, trials, self.progress)
        except TooFewSessionsError as error:
            sys.stderr.write(f"no quality is promised: {error}\n")
        save_codec(codec, self.out)

    def _summary(self, codec: TinyVAECodec, seconds: float) -> dict[str, Any]:
        return {
            "output": str(self.out),
            "model": self.model_name,
            "sessions": len(self.usable),
            "seconds": seconds,
            "file_bytes": (self.out / "model.safetensors").stat().st_size,
            "promises": stored_in_words(codec),
            "fingerprint": codec.fingerprint,
        }


def _data_parallel() -> DDPStrategy:
    """Return data parallelism that leaves buffers alone: all processes read the same codec, and gloo knows no int16."""
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, init_sync=False)


class NextEpoch(lightning.Callback):
    """Tells the cuts which epoch it is."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Set it."""
        cuts = trainer.train_dataloader.dataset
        if isinstance(cuts, Cuts):
            cuts.epoch = trainer.current_epoch


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
            block.start(generator)
        if vae.predictor is not None:
            vae.predictor.start(generator)
    return deeper.eval()
