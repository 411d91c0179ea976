"""The directory of a codec: verify its quality, write weights, configuration and card."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kvcompress.codec.directory import load_tinyvae, require_place_of_codec
from kvcompress.codec.promise import FALLBACK
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.data.shards import opening_digest
from kvcompress.errors import about
from kvcompress.fit.calibrate import calibrated
from kvcompress.fit.trials import TrialSource, trials_from_sessions
from kvcompress.format.atomic_directory import atomic_directory, carry_over, locked_directory, require_directory
from kvcompress.hf import fingerprint, load_model, recompute_with
from kvcompress.hf.fingerprint import vocabulary_digest
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.hub.hub_id import CODEC_FILES

Progress = Callable[[str, int, int], None]

SHORTEST_SESSION_TOKENS = 16
WEIGHTS = "model.safetensors"


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
        A summary: sessions used, seconds, how each quality is stored.

    Raises:
        MismatchError: The codec is of another model.
        TooFewSessionsError: Too few sessions are long enough; it says how many more are needed.
        InputError: The directory cannot be replaced, or another process is writing it.
    """
    require_directory(directory, force=True)
    with locked_directory(directory):
        return _calibrate(model, sessions, directory, progress)


def _calibrate(model: str, sessions: Path, directory: Path, progress: Progress) -> dict[str, Any]:
    start = time.perf_counter()
    codec = load_tinyvae(directory)
    language_model, tokenizer = load_model(model)
    with about(directory):
        codec.model_fingerprint.require_match(fingerprint(language_model, tokenizer))
    usable = usable_sessions(language_model, tokenizer, sessions)
    kept_out = kept_out_of_fit(codec.fitted, usable)
    trials = trials_from_sessions(language_model, kept_out, tokenizer)
    resume_file = directory.with_name(directory.name + ".calibration.jsonl")
    finish_codec(codec, language_model, tokenizer, trials, progress, resume_file=resume_file)
    codec.fitted["fingerprint"] = codec.fingerprint
    # A file that holds sessions of the fit is the fit's: the others in it set levels and tables.
    codec.fitted["verified_apart"] = len(kept_out) == len(usable)
    config = json.dumps(codec.config_json(), sort_keys=True, indent=2)
    with atomic_directory(directory, force=True) as fresh:
        carry_over(directory, fresh, _others(directory) | {WEIGHTS})
        (fresh / "config.json").write_text(config, encoding="utf-8")
        (fresh / "README.md").write_text(card(codec), encoding="utf-8")
    resume_file.unlink(missing_ok=True)
    return {
        "output": str(directory),
        "sessions": len(trials),
        "sessions_of_the_fit": len(usable) - len(kept_out),
        "calibrate_seconds": time.perf_counter() - start,
        "promises": stored_in_words(codec),
        "fingerprint": codec.fingerprint,
    }


def usable_sessions(model: CausalLM, tokenizer: Tokenizer | None, sessions: Path) -> list[Tensor]:
    """Return the token ids [N] int64 of recorded sessions that are long enough to be cut in two."""
    rows = [ids for _, ids in tokenized_sessions(model, tokenizer, sessions)]
    return [ids for ids in rows if len(ids) >= SHORTEST_SESSION_TOKENS]


def kept_out_of_fit(fitted: dict[str, Any], rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the sessions that a codec was not fitted to: those codes better than any session will be.

    Args:
        fitted: `TinyVAECodec.fitted`. Codecs name their sessions by digest; of older ones it is known only how many
            there were and how they were split.
        rows: Token ids [N] int64 of each session.
    """
    if "session_digests" in fitted:
        known = set(fitted["session_digests"])
        return [ids for ids in rows if opening_digest(ids) not in known]
    settings = fitted.get("settings", {})
    if not {"seed", "calibration_share"} <= set(settings):
        return list(rows)
    order = list(range(len(rows)))
    random.Random(settings["seed"]).shuffle(order)
    kept = max(1, round(settings["calibration_share"] * len(order)))
    counts = (len(order) - kept, kept, sum(len(rows[index]) for index in order[kept:]))
    if counts != tuple(fitted.get(name) for name in ("sessions", "calibration_sessions", "tokens")):
        return list(rows)
    return [rows[index] for index in order[:kept]]


def finish_codec(
    codec: TinyVAECodec,
    model: CausalLM,
    tokenizer: Tokenizer | None,
    trials: Sequence[TrialSource],
    progress: Progress,
    *,
    resume_file: Path | None = None,
) -> None:
    """Give a codec its promises and its figures of ordinary sessions.

    Raises:
        TooFewSessionsError: Nothing can be promised; the codec is left as it was.
    """
    codec.recompute = recompute_with(model, tokenizer)
    found = calibrated(model, codec, trials, progress=progress, resume_file=resume_file)
    codec.promises, codec.fitted["known"] = found.promises, found.known
    if tokenizer is not None:
        codec.fitted["vocabulary"] = vocabulary_digest(tokenizer)


def stored_in_words(codec: TinyVAECodec) -> dict[str, str]:
    """Return how each promised quality is stored."""
    found = {name: promise for name, promise in codec.promises.items() if name != FALLBACK}
    return {
        name: promise.setting.words() + ("" if promise.qp is None else f" at QP {promise.qp}")
        for name, promise in found.items()
    }


def save_codec(codec: TinyVAECodec, output: Path) -> None:
    """Write config, weights and card into a sibling directory, then put it in place of `output`.

    Codecs that recompute layers lie in subdirectories of the one that codes all; they stay, as does whatever else lies
    beside a codec's files.

    Raises:
        InputError: The directory holds other things and no codec, it cannot be replaced, or another process writes it.
    """
    require_place_of_codec(output)
    codec.fitted["fingerprint"] = codec.fingerprint  # so that a file's promise is found without the weights
    with atomic_directory(output, force=True) as fresh:
        codec.save_pretrained(fresh, config=codec.config_json())
        (fresh / "README.md").write_text(card(codec), encoding="utf-8")
        carry_over(output, fresh, _others(output))


def _others(directory: Path) -> set[str]:
    """Return the names in a directory that are not a codec's own files."""
    return {entry.name for entry in directory.iterdir()} - set(CODEC_FILES) if directory.is_dir() else set()


def card(codec: TinyVAECodec) -> str:
    """Return the model card."""
    fitted = codec.fitted
    return f"""---
library_name: kvcompress
tags: [kv-cache-compression]
license: apache-2.0
---
# TinyVAE codec

Conditional transform codec of one model's KV caches, fitted in closed form from {fitted["sessions"]} sessions
({fitted["tokens"]:,} tokens); levels, tables and the weights of the prediction come from
{fitted["calibration_sessions"]} further sessions.
{_recompute_in_words(codec.recompute_layers)}{_spectrum_in_words(fitted)}
{_promises_in_words(codec)}
{_known_in_words(fitted)}{_trained_in_words(fitted)}
Model fingerprint: `{codec.model_fingerprint.weights}` (weights). Codec fingerprint: `{codec.fingerprint}`.

Settings: `{json.dumps(fitted["settings"])}`

Use: `kvcompress encode RAW.safetensors -o FILE.kvz --codec DIR{_option(codec.recompute_layers)}`
"""


def _promises_in_words(codec: TinyVAECodec) -> str:
    """Return the table of what is promised and the evidence, or the line that nothing is."""
    promises = {name: promise for name, promise in codec.promises.items() if name != FALLBACK}
    if not promises:
        return "No quality was verified, so none is promised: run `kvcompress calibrate DIR --sessions FILE`."
    rows = []
    for name, promise in promises.items():
        losses = [
            f"{loss.measured:.4g} of {loss.bound:g}, {loss.beyond} beyond"
            for loss in (promise.kl_nats, promise.context_lost, promise.top1_lost)
        ]
        qp = "" if promise.qp is None else f" at {promise.qp}"
        ratio = "" if promise.size_ratio is None else f"{promise.size_ratio:.4g}"
        stored = f"{promise.setting.words()}{qp}"
        rows.append(f"| {name} | {stored} | {ratio} | {promise.sessions} | {' | '.join(losses)} |")
    first = next(iter(promises.values()))
    return "\n".join(
        [
            "| quality | stored as, at QP | size ratio | sessions | KL (nats) | context lost | top-1 lost |",
            "| --- | --- | ---: | ---: | --- | --- | --- |",
            *rows,
            "",
            f"Measured after decode and resume over {first.continuation_tokens} further tokens, on sessions of about",
            f"{first.prefix_tokens:,} tokens {_apart_in_words(codec.fitted)}.",
            "By conformal risk control (arXiv 2208.02814) the expected loss of a new session of the same kind, clipped",
            "at four bounds, stays within each bound, and at most one session in twenty loses more than twice as much",
            '("beyond").',
        ]
    )


def _apart_in_words(fitted: dict[str, Any]) -> str:
    """Tell how far the sessions that promises were measured on stood apart from the fit."""
    if fitted.get("verified_apart"):
        return "that fitted nothing"
    return "that prior and transform were not fitted to, but levels, tables and the weights of the prediction were"


def _spectrum_in_words(fitted: dict[str, Any]) -> str:
    """Return the card's paragraph on ranks and what they leave; empty for codecs that do not say."""
    spectrum = fitted.get("spectrum")
    if not spectrum:
        return ""
    ranks = ", ".join(f"{group['rank']} of {group['channels']:,}" for group in spectrum)
    floor = fitted.get("floor_kl_nats")
    told = "" if floor is None else f" Latents that are not rounded at all leave a KL of {floor:.2g} nats."
    return f"\nLatents by group of layers, chosen from the spectrum under a budget: {ranks}.{told}\n"


def _trained_in_words(fitted: dict[str, Any]) -> str:
    """Return the card's paragraph on training; empty for a codec in closed form."""
    recipe = fitted.get("recipe")
    if not recipe:
        return ""
    trained = fitted.get("trained")  # a stage may have ended early; older codecs took all steps of their recipe
    steps = [
        recipe[f"{stage}_stage"]["steps"] if trained is None else trained.get(stage, {"steps": 0})["steps"]
        for stage in ("rate", "divergence")
    ]
    # Recipes of codecs of earlier versions say "rate".
    lowest, highest = (recipe.get(f"{end}_qp", recipe.get(f"{end}_rate")) for end in ("lowest", "highest"))
    return f"""
The closed form was trained on (`kvcompress train`): {steps[0]:,} steps of prior and prediction on bits,
{steps[1]:,} of these and the synthesis on bits and the KL divergence of the resumed model, at QPs
{lowest} to {highest}.
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
