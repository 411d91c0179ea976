"""Make a codec checkpoint from a model and a session file: fit, measure the tiers, write the card."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kvcompress.atomic import atomic_write
from kvcompress.calibrate import MARGIN, calibrate_tiers
from kvcompress.codec import TinyVAECodec
from kvcompress.codec_directory import load_tinyvae
from kvcompress.errors import about
from kvcompress.fit import FitSettings, fit_codec
from kvcompress.harvest import tokenized_sessions
from kvcompress.hf import fingerprint, load_model, recompute_with
from kvcompress.known import measure_known
from kvcompress.zoo import find_checkpoint

Progress = Callable[[str, int, int], None]

SHORTEST_SESSION_TOKENS = 16


def fit_checkpoint(
    model: str, sessions: Path, output: Path, settings: FitSettings, progress: Progress
) -> dict[str, Any]:
    """Fit, calibrate and save; `output` appears whole or not at all.

    Returns:
        A summary: tokens, seconds, size of the checkpoint, rate index of each tier.
    """
    start = time.perf_counter()
    language_model, tokenizer = load_model(find_checkpoint(model))
    rows = _usable_sessions(language_model, tokenizer, sessions)
    codec, kept_out = fit_codec(language_model, tokenizer, rows, settings, progress)
    finish_codec(codec, language_model, tokenizer, kept_out, progress)
    save_codec(codec, output)
    weights_bytes = (output / "model.safetensors").stat().st_size
    return {
        "output": str(output),
        "tokens": codec.fitted["tokens"],
        "fit_seconds": time.perf_counter() - start,
        "file_bytes": weights_bytes,
        "tiers": codec.tiers,
        "fingerprint": codec.fingerprint,
    }


def calibrate_checkpoint(model: str, sessions: Path, directory: Path, progress: Progress) -> dict[str, Any]:
    """Measure a codec's tiers and what ordinary sessions are like again; config and card are replaced.

    Weights and tables stay, so the fingerprint does, and files of this codec go on decoding.

    Args:
        model: Its model, a bundled name or a directory.
        sessions: Recorded sessions. Of the file that the codec was fitted to, only those that the fit kept out are
            used: the others are coded better than any session will be.
        directory: The codec.
        progress: Called as the stages go on.

    Returns:
        A summary: sessions used, seconds, rate index of each tier.

    Raises:
        MismatchError: The codec is of another model.
        InputError: No session is long enough, or the directory cannot be written to.
    """
    start = time.perf_counter()
    codec = load_tinyvae(directory)
    language_model, tokenizer = load_model(find_checkpoint(model))
    with about(directory):
        codec.model_fingerprint.require_match(fingerprint(language_model, tokenizer))
    rows = _usable_sessions(language_model, tokenizer, sessions)
    kept_out = kept_out_of_fit(codec.fitted, rows)
    finish_codec(codec, language_model, tokenizer, kept_out or rows, progress)
    config = json.dumps(codec.config_json(), sort_keys=True, indent=2)
    atomic_write(directory / "config.json", [config.encode()], force=True)
    atomic_write(directory / "README.md", [card(codec).encode()], force=True)
    return {
        "output": str(directory),
        "sessions": len(kept_out or rows),
        "kept_out_of_fit": bool(kept_out),
        "calibrate_seconds": time.perf_counter() - start,
        "tiers": codec.tiers,
        "fingerprint": codec.fingerprint,
    }


def kept_out_of_fit(fitted: dict[str, Any], rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the sessions that the fit kept out, if these are the ones that it was given, else none.

    Args:
        fitted: `TinyVAECodec.fitted`.
        rows: Token ids [N] int64 of each session.
    """
    settings = fitted.get("settings", {})
    if not {"seed", "calibration_share"} <= set(settings):
        return []
    order = list(range(len(rows)))
    random.Random(settings["seed"]).shuffle(order)
    kept = max(1, round(settings["calibration_share"] * len(order)))
    counts = (len(order) - kept, kept, sum(len(rows[index]) for index in order[kept:]))
    if counts != tuple(fitted.get(name) for name in ("sessions", "calibration_sessions", "tokens")):
        return []
    return [rows[index] for index in order[:kept]]


def _usable_sessions(model: Any, tokenizer: Any, sessions: Path) -> list[Tensor]:
    """Return the token ids of every session that is long enough to be of use."""
    return [ids for _, ids in tokenized_sessions(model, tokenizer, sessions) if len(ids) >= SHORTEST_SESSION_TOKENS]


def finish_codec(
    codec: TinyVAECodec, model: Any, tokenizer: Any, kept_out: Sequence[Tensor], progress: Progress
) -> None:
    """Give a codec its tiers and its figures of ordinary sessions."""
    codec.recompute = recompute_with(model, tokenizer)
    codec.tiers = calibrate_tiers(model, codec, kept_out, tokenizer=tokenizer, progress=progress)
    codec.fitted["known"] = measure_known(model, codec, kept_out, tokenizer=tokenizer, progress=progress)


def save_codec(codec: TinyVAECodec, output: Path) -> None:
    """Write config, weights and card into a sibling directory, then put it in place of `output`.

    Codecs that recompute layers lie in subdirectories of the one that codes all; they stay.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".kvcompress-") as temporary:
        fresh = Path(temporary) / "codec"
        codec.save_pretrained(fresh, config=codec.config_json())
        (fresh / "README.md").write_text(card(codec), encoding="utf-8")
        for part in sorted(output.glob("recompute-*")):
            shutil.copytree(part, fresh / part.name)
        if output.exists():
            output.rename(Path(temporary) / "old")
        shutil.move(fresh, output)


def card(codec: TinyVAECodec) -> str:
    """Return the model card."""
    fitted = codec.fitted
    tiers = "\n".join(f"| {name} | {rate} |" for name, rate in codec.tiers.items())
    return f"""---
library_name: kvcompress
tags: [kv-cache-compression]
license: apache-2.0
---
# TinyVAE codec

Conditional transform codec of one model's KV caches, fitted in closed form from {fitted["sessions"]} sessions
({fitted["tokens"]:,} tokens); levels, tables and quality tiers come from {fitted["calibration_sessions"]} further
sessions.
{_recompute_in_words(codec.recompute_layers)}
| quality | rate index |
| --- | --- |
{tiers}

Each tier is the coarsest rate whose mean KL, context lost and top-1 agreement, measured after decode and resume on the
further sessions, used at most {MARGIN:.0%} of the tier's bounds.
{_known_in_words(fitted)}{_trained_in_words(fitted)}
Model fingerprint: `{codec.model_fingerprint.weights}` (weights). Codec fingerprint: `{codec.fingerprint}`.

Settings: `{json.dumps(fitted["settings"])}`

Use: `kvcompress encode RAW.safetensors -o FILE.kvz --codec DIR{_option(codec.recompute_layers)}`
"""


def _trained_in_words(fitted: dict[str, Any]) -> str:
    """Return the card's paragraph on training; empty for a codec in closed form."""
    recipe = fitted.get("recipe")
    if not recipe:
        return ""
    steps = [recipe[stage]["steps"] for stage in ("rate_stage", "divergence_stage")]
    return f"""
The closed form was trained on (`python -m train fit`): {steps[0]:,} steps of prior and prediction on bits,
{steps[1]:,} of these and the synthesis on bits and the KL divergence of the resumed model, at rate indices
{recipe["lowest_rate"]} to {recipe["highest_rate"]}.
"""


def _option(recompute_layers: int) -> str:
    return f" --recompute-layers {recompute_layers}" if recompute_layers else ""


def _recompute_in_words(recompute_layers: int) -> str:
    """Return the card's paragraph on layers that are not coded; empty where all are."""
    if not recompute_layers:
        return ""
    return f"""
Layers 0 to {recompute_layers} are not coded: restoring runs the model's first {recompute_layers} layers over the token
ids, which gives their keys and values and predicts the layers above. So decoding needs the model.
"""


def _known_in_words(fitted: dict[str, Any]) -> str:
    """Return the card's paragraph on ordinary sessions; empty where the codec knows nothing of them."""
    known = fitted.get("known")
    if not known:
        return ""
    return f"""
Bits per token and relative error of {known["sessions"]} sessions at each tier are in `config.json`: `encode --quality`
stores a session far outside them at a finer quality, or by int8.
"""
