"""Measure every point of the trade-off: bytes and damage on recorded sessions, seconds on one long session.

The points are the codecs at hand, m = 0 first, and prefilling from the token ids. All are measured on the same
sessions and, for seconds, in turns in one process. KL is that of true files: encoded, saved, loaded, decoded with the
model, resumed.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.bench import long_session
from eval.recompute.trial import Trial, prepare_trial
from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.directory import load_codec
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.format.container import load, save
from kvcompress.hf import capture, load_model, recompute_with, restore
from kvcompress.hf.loading import model_directory
from kvcompress.hub.bundled import recompute_choices
from kvcompress.hub.places import find_codec
from kvcompress.metrics.fidelity import continuation_logits, kl_nats, top_agreement
from kvcompress.metrics.timing import bring_back, in_turns, prefill
from kvcompress.rate.link import tokens_only
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.suite.bootstrap import estimate_mean, estimate_ratio
from kvcompress_eval.suite.chosen import choose_sessions
from kvcompress_eval.suite.provenance import commit, package_versions

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]
QP_STEPS = (-12, -6, 6, 12)
"""Beside a codec's own tiers these QPs around transparent are measured, so that sizes at equal KL can be read off."""


@dataclass(frozen=True, slots=True)
class TradeOffSettings:
    """How much is measured.

    Attributes:
        tokens: Stored of each session.
        continuation_tokens: Predicted after them.
        count: Sessions.
        long_tokens: Length of the session that is timed.
        rounds: Times that every way back is timed, in turns; medians are reported.
    """

    tokens: int = 1024
    continuation_tokens: int = 128
    count: int = 24
    long_tokens: int = 2048
    rounds: int = 7


def run_trade_off(
    model_name: str,
    codec_name: str,
    sessions: Path,
    out: Path,
    settings: TradeOffSettings,
    progress: Progress,
    command: str,
) -> Row:
    """Measure, write report.json into `out` and return it.

    Raises:
        InputError: There is no codec that recomputes layers, or no session is long enough.
    """
    model, tokenizer = load_model(model_name)
    codecs = load_trade_off(codec_name, model, tokenizer)
    rows = tokenized_sessions(model, tokenizer, sessions)
    chosen, _ = choose_sessions(rows, settings.count, settings.tokens, settings.continuation_tokens)
    trials = []
    for done, (_, ids) in enumerate(chosen, 1):
        trials.append(prepare_trial(model, ids, settings.continuation_tokens, tokenizer))
        progress("exact caches", done, len(chosen))
    points = []
    for done, (layers, codec) in enumerate(codecs.items(), 1):
        points.append(measure_codec(model, layers, codec, trials))
        progress("codecs", done, len(codecs))
    ids = long_session(model, tokenizer, settings.long_tokens)
    seconds = time_all(model, codecs, capture(model, ids, tokenizer=tokenizer), settings.rounds)
    tokens = [tokens_only(trial.snapshot, codecs.values()) for trial in trials]
    result = assemble(points, trials, tokens, seconds)
    result |= {"layers": len(codecs[0].shapes), "long_tokens": settings.long_tokens}
    result |= {
        "command": command,
        "commit": commit(),
        "versions": package_versions(),
        "threads": torch.get_num_threads(),
        "settings": asdict(settings),
        "sessions": {"file": sessions.name, "count": len(trials)},
        "model_bytes": weights_bytes(model_directory(model_name)),
        "codec_bytes": {str(m): weights_bytes(find_codec(codec_name), m) for m in codecs},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def load_trade_off(codec_name: str, model: Any, tokenizer: Any) -> dict[int, TinyVAECodec]:
    """Return all codecs of a directory by m, ready to decode.

    Raises:
        InputError: There is not one that codes all layers and one that does not.
    """
    choices = recompute_choices(find_codec(codec_name))
    if 0 not in choices or len(choices) < 2:
        what = f"{codec_name} holds codecs for m = {', '.join(map(str, choices)) or 'none'}"
        raise InputError(
            f"{what}; the trade-off needs 0 and another", "Fit one with `kvcompress fit --recompute-layers 1`"
        )
    codecs = {layers: load_codec(codec_name, layers) for layers in choices}
    for codec in codecs.values():
        codec.recompute = recompute_with(model, tokenizer)
    return codecs


def weights_bytes(directory: Path, layers: int = 0) -> int:
    """Return the size of a checkpoint's weights."""
    place = directory / f"recompute-{layers}" if layers else directory
    return (place / "model.safetensors").stat().st_size


@torch.inference_mode()
def measure_codec(model: Any, layers: int, codec: TinyVAECodec, trials: Sequence[Trial]) -> Row:
    """Measure a codec at its tiers and at QPs around transparent, session by session."""
    around = {codec.tiers["transparent"] + step for step in QP_STEPS}
    qps = sorted(set(codec.tiers.values()) | {qp for qp in around if 0 <= qp <= HIGHEST_QP})
    found: dict[int, list[Row]] = {qp: [] for qp in qps}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "session.kvz"
        for trial in trials:
            for qp in qps:
                save(path, codec.encode(trial.snapshot, qp), force=True)
                found[qp].append(_measured(model, codec, trial, path))
    return {
        "recompute_layers": layers,
        "tiers": codec.tiers,
        "rates": [{"rate": qp, **summary(rows, trials)} for qp, rows in found.items()],
    }


def _measured(model: Any, codec: TinyVAECodec, trial: Trial, path: Path) -> Row:
    cache = restore(codec.decode(load(path)), model)
    logits = continuation_logits(model, cache, trial.continuation, trial.snapshot.tokens)
    return {
        "file_bytes": path.stat().st_size,
        "kl_nats": float(kl_nats(trial.exact, logits).mean()),
        "top1_agreement": top_agreement(trial.exact, logits, 1),
    }


def summary(rows: Sequence[Row], trials: Sequence[Trial]) -> Row:
    """Return means over sessions with standard errors; context lost is the ratio of the sums."""
    raw = [trial.snapshot.raw_bytes for trial in trials]
    kl = [row["kl_nats"] for row in rows]
    return {
        "file_bytes": statistics.fmean(row["file_bytes"] for row in rows),
        "size_ratio": estimate_ratio(raw, [row["file_bytes"] for row in rows]).to_json(),
        "kl_nats": estimate_mean(kl).to_json(),
        "context_lost": sum(kl) / sum(trial.short_kl_nats for trial in trials),
        "top1_agreement": statistics.fmean(row["top1_agreement"] for row in rows),
    }


def time_all(model: Any, codecs: Mapping[int, TinyVAECodec], snapshot: KVSnapshot, rounds: int) -> dict[str, Row]:
    """Return for each way back, by m or "prefill", bytes and median seconds: open, verify, decode, build the cache."""
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {"prefill": partial(prefill, model, snapshot.token_ids)}
        sizes = {"prefill": tokens_only(snapshot, codecs.values())}
        for layers, codec in codecs.items():
            path = Path(temporary) / f"{layers}.kvz"
            save(path, codec.encode(snapshot, codec.qp_of("transparent")))
            sizes[str(layers)] = path.stat().st_size
            calls[str(layers)] = partial(bring_back, model, codec, path)
        seconds = in_turns(calls, rounds)
    return {name: {"file_bytes": sizes[name], "seconds": seconds[name]} for name in calls}


def assemble(points: Sequence[Row], trials: Sequence[Trial], tokens: Sequence[int], seconds: Mapping[str, Row]) -> Row:
    """Put figures together and compare every point with m = 0 at the mean KL of its transparent tier."""
    prefill = seconds["prefill"]["seconds"]
    whole = points[0]
    wanted = at_tier(whole, "transparent")["kl_nats"]["mean"]
    basis = size_ratio_at(whole["rates"], wanted)
    for point in points:
        timed = seconds[str(point["recompute_layers"])]
        equal = size_ratio_at(point["rates"], wanted)
        point |= {
            "long_file_bytes": timed["file_bytes"],
            "restore_seconds": timed["seconds"],
            "prefill_over_restore": prefill / timed["seconds"],
            "size_ratio_at_equal_kl": equal,
            "gain_at_equal_kl": equal / basis,
        }
    return {
        "equal_kl_nats": wanted,
        "points": list(points),
        "prefill": {
            "file_bytes": statistics.fmean(tokens),
            "size_ratio": estimate_ratio([trial.snapshot.raw_bytes for trial in trials], tokens).to_json(),
            "long_file_bytes": seconds["prefill"]["file_bytes"],
            "prefill_seconds": prefill,
        },
    }


def at_tier(point: Row, tier: str) -> Row:
    """Return the figures of a point at a quality word."""
    found: Row = next(row for row in point["rates"] if row["rate"] == point["tiers"][tier])
    return found


def size_ratio_at(qps: Sequence[Row], wanted_kl_nats: float) -> float:
    """Return the size ratio at a mean KL: a line in logarithms between neighbouring QPs.

    Beyond all of them it is the line through the first and the last, followed no further than these two lie apart:
    neighbours may differ by noise alone, and their line then leads anywhere.
    """
    points = sorted((math.log(row["kl_nats"]["mean"]), math.log(row["size_ratio"]["mean"])) for row in qps)
    wanted = math.log(wanted_kl_nats)
    after = next((index for index, (kl, _) in enumerate(points) if kl >= wanted), 0)
    (x0, y0), (x1, y1) = (points[after - 1], points[after]) if after else (points[0], points[-1])
    share = (wanted - x0) / (x1 - x0) if x1 > x0 else 0.0
    return math.exp(y0 + min(max(share, -1.0), 2.0) * (y1 - y0))
