"""Make a codec checkpoint: harvest sessions or read shards, fit, verify, save.

Everything that takes long lies in a working directory beside the output, `<output>.fit`, until the codec is there: a
run that was killed goes on where it stopped.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.directory import require_place_of_codec
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import harvest, write_shards
from kvcompress.data.shards import Shards, opening_digest
from kvcompress.errors import InputError
from kvcompress.fit.calibrate import TooFewSessionsError
from kvcompress.fit.checkpoint import finish_codec, save_codec, stored_in_words
from kvcompress.fit.fitter import Fitter, require_coded_layers
from kvcompress.fit.floor import floor_nats
from kvcompress.fit.settings import FitSettings
from kvcompress.fit.trials import CONTINUATION_TOKENS
from kvcompress.fit.working import Working
from kvcompress.format.atomic_directory import discard, locked_directory
from kvcompress.hf import fingerprint, load_model
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.hub.bundled import recompute_name
from kvcompress.snapshot import KVSnapshot

PASSES = 2
"""Version of what passes leave behind: a fit that an earlier version began is begun anew."""

Progress = Callable[[str, int, int], None]
Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FitSource:
    """What a codec is fitted to.

    Attributes:
        model: Name, directory, Hub id or GGUF file; None where shards are given and nothing is to be verified.
        sessions: JSON lines of recorded sessions, to be harvested; None where shards are given.
        shards: A finished harvest; None where sessions are given.
        tokens: Sessions are cut at so many tokens; None at the model's context.
        rows: Sessions in memory instead, name and token ids [N] int64 of each.
        loaded: The model in memory and its tokenizer, instead of its name.
    """

    model: str | None
    sessions: Path | None = None
    shards: Path | None = None
    tokens: int | None = None
    rows: tuple[tuple[str, Tensor], ...] | None = None
    loaded: tuple[CausalLM, Tokenizer | None] | None = None

    def load(self) -> tuple[CausalLM, Tokenizer | None] | None:
        """Return the model and its tokenizer; None where none is named."""
        return self.loaded or (None if self.model is None else load_model(self.model))

    def check(self) -> None:
        """Raise `InputError` unless there is one source, and a model where sessions are to be harvested."""
        if [self.sessions, self.shards, self.rows].count(None) != 2:
            raise InputError("a fit needs either --sessions or --shards", "Give one of them")
        if self.shards is not None and self.tokens is not None:
            raise InputError("shards are cut already", "Leave --tokens away, or harvest again")

    def layer_count(self) -> int:
        """Return how many layers the model has."""
        if self.shards is not None:
            return len(Shards(self.shards).origin.layer_kinds)
        if self.loaded is not None:
            return int(self.loaded[0].config.get_text_config(decoder=True).num_hidden_layers)
        from kvcompress.hf.loading import model_config

        return int(model_config(self.model or "").num_hidden_layers)


@dataclass(frozen=True, slots=True)
class ShardTrial:
    """A session of a harvest, cut as it was harvested: see `kvcompress.fit.trials.TrialSource`."""

    shards: Shards
    number: int

    @property
    def snapshot(self) -> KVSnapshot:
        """The cache before the continuation, read anew."""
        return self.shards.snapshot(self.number)

    @property
    def continuation(self) -> Tensor:
        """Token ids [T] int64, at most 128: losses are largest right after a session is resumed."""
        return self.shards.continuation(self.number)[:CONTINUATION_TOKENS]


def fit_checkpoint(
    source: FitSource, output: Path, settings: FitSettings, progress: Progress, announce: Announce = lambda line: None
) -> dict[str, Any]:
    """Fit, verify and save; `output` appears whole or not at all, and no other process fits the same codec meanwhile.

    Args:
        source: Model and sessions, or shards.
        output: Directory of the codec.
        settings: Of the fit.
        progress: Called with stage, done, total.
        announce: Called with lines that a user should read.

    Returns:
        A summary: tokens, seconds, peak memory, size of the checkpoint, what is promised.

    Raises:
        InputError: Too few sessions to fit to, a directory that cannot be replaced, or one that another process writes.
        MismatchError: The shards are of another model.
    """
    source.check()
    require_coded_layers(settings.recompute_layers, source.layer_count())
    require_place_of_codec(output)
    # A codec and those beside it that recompute layers are one directory: replacing one copies the others.
    beside = settings.recompute_layers and output.name == recompute_name(settings.recompute_layers)
    with locked_directory(output.parent if beside else output):
        return _fit(source, output, settings, progress, announce)


def _fit(
    source: FitSource, output: Path, settings: FitSettings, progress: Progress, announce: Announce
) -> dict[str, Any]:
    start, place = time.perf_counter(), output.with_name(output.name + ".fit")
    loaded = source.load()
    if source.shards is not None:
        shards = Shards(source.shards)
    else:
        shards = _harvest(source, loaded, settings, place, progress, announce)
    if loaded is not None:
        shards.origin.fingerprint.require_match(fingerprint(*loaded), path=shards.directory)
        loaded = None  # the passes need its memory and not the model
    key = {"passes": PASSES, "settings": asdict(settings), "shards": shards.settings}
    working = Working(place / f"passes-{settings.recompute_layers}", key)
    codec = Fitter(shards, settings, progress, working).fit()
    again = source.load()
    if again is None:
        announce("no model was named, so nothing was verified: the codec promises no quality")
    else:
        verify(codec, *again, shards, working, progress, announce)
    save_codec(codec, output)
    discard(place, output)
    return _summary(codec, output, time.perf_counter() - start)


def _harvest(
    source: FitSource, loaded: Any, settings: FitSettings, place: Path, progress: Progress, announce: Announce
) -> Shards:
    """Return the shards of the sessions of a file, made in the working directory."""
    if loaded is None:
        raise InputError("sessions are harvested with a model", "Name it with --model")
    target, (model, tokenizer) = place / "shards", loaded
    stated = replace(settings.harvest_settings(), tokens=source.tokens)
    options: dict[str, Any] = {"settings": stated, "announce": announce, "own": True}
    if source.sessions is not None:
        write_shards(model, tokenizer, source.sessions, target, progress, **options)
    else:
        harvest(model, tokenizer, source.rows or (), target, progress, **options)
    return Shards(target)


def verify(
    codec: TinyVAECodec,
    model: CausalLM,
    tokenizer: Tokenizer | None,
    shards: Shards,
    working: Working,
    progress: Progress,
    announce: Announce,
) -> None:
    """Measure the floor and what can be promised on the sessions kept out; say what is not promised and why."""
    kept = shards.part("calibration")
    trials = [ShardTrial(kept, number) for number in range(len(kept))]
    codec.fitted["floor_kl_nats"] = floor_nats(model, codec, trials, tokenizer)
    known = set(codec.fitted["session_digests"])
    codec.fitted["verified_apart"] = all(
        opening_digest(kept.session(number)) not in known for number in range(len(kept))
    )
    try:
        finish_codec(codec, model, tokenizer, trials, progress, resume_file=working.file("trials.jsonl"))
    except TooFewSessionsError as error:
        announce(f"no quality is promised: {error.what}. {error.remedy}")


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _summary(codec: TinyVAECodec, output: Path, seconds: float) -> dict[str, Any]:
    return {
        "output": str(output),
        "tokens": codec.fitted["tokens"],
        "fit_seconds": seconds,
        "peak_bytes": peak_bytes(),
        "threads": torch.get_num_threads(),
        "file_bytes": (output / "model.safetensors").stat().st_size,
        "promises": stored_in_words(codec),
        "floor_kl_nats": codec.fitted.get("floor_kl_nats"),
        "fingerprint": codec.fingerprint,
    }


__all__ = ["FitSource", "ShardTrial", "fit_checkpoint", "peak_bytes", "verify"]
