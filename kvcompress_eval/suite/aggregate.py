"""From the rows of one codec, one a session, to its entry in the report.

Means are means over sessions; sizes, context lost and sensitive KL are ratios of sums. Standard errors come from
resampling sessions: the tokens of one session are not independent. Figures are over the first 128 tokens that followed;
where more did, `whole` has the same over all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kvcompress.metrics.fidelity import tier_of
from kvcompress_eval.suite.bootstrap import (
    Estimate,
    estimate_mean,
    estimate_quantiles,
    estimate_ratio,
    estimate_statistic,
)
from kvcompress_eval.suite.score import score
from kvcompress_eval.suite.tails import tails

Row = Mapping[str, Any]
QUANTILES = {"kl_p50_nats": 0.5, "kl_p90_nats": 0.9, "kl_p99_nats": 0.99, "kl_p999_nats": 0.999}
CURVE = tuple(1 - 10 ** (-0.1 * step) for step in range(1, 36))
"""Fractions at which the distribution of KL is drawn: evenly spaced in the logarithm of what lies above."""

DISTANCES_TOKENS = (0, 256, 512, 1024, 2048, 4096, 1 << 20)


def codec_entry(rows: Sequence[Row], *, codec_bytes: int, values_count: int, failed: str | None) -> dict[str, Any]:
    """Return what the report says of one codec.

    Args:
        rows: One row a session, at least one.
        codec_bytes: Size of what must be at hand to decode.
        values_count: Cached numbers of one session.
        failed: Why it stopped early, if it did.
    """
    fidelity = metrics(rows)
    whole = [{**row, **row["whole"]} for row in rows if "whole" in row]
    raw, file = _mean(rows, "raw_bytes"), _mean(rows, "file_bytes")
    saved = raw - file
    kl, lost, top1 = (fidelity[name]["mean"] for name in ("kl_nats", "context_lost", "top1_agreement"))
    entry = {
        "name": rows[0]["codec"],
        "family": rows[0]["family"],
        "failed": failed,
        "size": {
            "file_bytes": file,
            "raw_bytes": raw,
            "size_ratio": ratio(rows, "raw_bytes", "file_bytes"),
            "smallest_size_ratio": min(row["raw_bytes"] / row["file_bytes"] for row in rows),
            "bits_per_value": 8 * file / values_count,
            "sections": _sections(rows),
        },
        "sessions": len(rows),
        "stored": dict(Counter(row["stored"] for row in rows)),
        "unlike": sum(row["unlike"] for row in rows),
        "codec_bytes": codec_bytes,
        "pays_back_after_sessions": codec_bytes / saved if saved > 0 else None,
        "tier": tier_of(kl, lost, top1),
        "fidelity": fidelity | _thorough(rows),
        "tails": tails(rows),
        "score": score(rows),
        "kl_quantiles": kl_curve(rows),
        "by_category": by_category(rows),
        "recall": recall(rows),
        "instructions": instructions(rows),
        "seconds": {name: _median(rows, f"{name}_seconds") for name in ("encode", "decode", "restore")},
        "megabytes_per_second": {name: raw / 1e6 / _median(rows, f"{name}_seconds") for name in ("encode", "decode")},
    }
    if whole:
        entry["whole"] = {"sessions": len(whole), "fidelity": metrics(whole), "tails": tails(whole)}
    return entry | _layers(rows)


def metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the fidelity measures of some rows as estimates."""
    per_session = [row["per_token_kl_nats"] for row in rows]
    kl = [float(np.mean(values)) for values in per_session]
    found: dict[str, Any] = {"kl_nats": estimate_mean(kl).to_json()}
    quantiles = estimate_quantiles(per_session, list(QUANTILES.values()))
    found |= {name: value.to_json() for name, value in zip(QUANTILES, quantiles, strict=True)}
    found["kl_max_nats"] = Estimate(max(map(max, per_session)), None).to_json()
    found["context_lost"] = estimate_ratio(kl, [row["worth_nats"] for row in rows]).to_json()
    for name in ("top1_agreement", "top5_agreement"):
        found[name] = estimate_mean([row[name] for row in rows]).to_json()
    found["rms_probability_change"] = _root_mean_square([row["rms_probability_change"] for row in rows])
    found["ppl_ratio"] = _geometric_mean([row["ppl_ratio"] for row in rows])
    sensitive = any(row["sensitive"] for row in rows)
    found["sensitive_kl_nats"] = ratio(rows, "sensitive_kl_nats", "sensitive") if sensitive else None
    found["sensitive_top1_agreement"] = ratio(rows, "sensitive_same", "sensitive") if sensitive else None
    return found


def ratio(rows: Sequence[Row], numerator: str, denominator: str) -> dict[str, Any]:
    """Return the ratio of two sums over rows."""
    return estimate_ratio([row[numerator] for row in rows], [row[denominator] for row in rows]).to_json()


def _root_mean_square(values: Sequence[float]) -> dict[str, Any]:
    return estimate_statistic(values, lambda sample: np.sqrt(np.square(sample).mean(-1))).to_json()


def _geometric_mean(values: Sequence[float]) -> dict[str, Any]:
    return estimate_statistic(values, lambda sample: np.exp(np.log(sample).mean(-1))).to_json()


def _thorough(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what was measured on some of the sessions only; a session without divergence counts its whole length."""
    found = {}
    for name in ("branch_divergence_nats", "divergence_margin_nats", "first_divergence_tokens"):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            found[name] = estimate_mean(values).to_json()
    return found


def _layers(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    errors = [row["attention_errors"] for row in rows if "attention_errors" in row]
    if errors:
        found["attention_error_by_layer"] = np.mean(errors, 0).tolist()
    peaks = [row["peak_memory_bytes"] for row in rows if row.get("peak_memory_bytes") is not None]
    if peaks:
        found["peak_memory_bytes"] = max(peaks)
    return found


def kl_curve(rows: Sequence[Row]) -> list[list[float]]:
    """Return (fraction of positions, KL that they stay under) over all sessions."""
    values = np.concatenate([row["per_token_kl_nats"] for row in rows])
    fractions = [fraction for fraction in CURVE if (1 - fraction) * len(values) >= 1]
    return [[fraction, float(np.quantile(values, fraction))] for fraction in fractions]


def by_category(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the measures of each category apart."""
    names = sorted({row["category"] for row in rows})
    return {name: metrics([row for row in rows if row["category"] == name]) for name in names}


def recall(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return exact answers to planted facts, in all and by distance; None where nothing could be asked."""
    asked = [question for row in rows for question in (*row["questions"], *row["planted"])]
    if not asked:
        return None
    bins = []
    for low, high in pairwise(DISTANCES_TOKENS):
        inside = [question for question in asked if low <= question[0] < high]
        if inside:
            bins.append({"from_tokens": low, "to_tokens": high} | _counts(inside))
    return _counts(asked) | {"by_distance": bins}


def _counts(asked: Sequence[Sequence[Any]]) -> dict[str, int]:
    exact, uncompressed = (sum(bool(question[column]) for question in asked) for column in (1, 2))
    return {"asked": len(asked), "exact": exact, "exact_uncompressed": uncompressed}


def instructions(rows: Sequence[Row]) -> dict[str, int] | None:
    """Return how many checks of standing instructions held; None where there are none."""
    checked = sum(row["rules_checked"] for row in rows)
    if not checked:
        return None
    kept, uncompressed = (sum(row[name] for row in rows) for name in ("rules_kept", "rules_kept_uncompressed"))
    return {"checked": checked, "kept": kept, "kept_uncompressed": uncompressed}


def _sections(rows: Sequence[Row]) -> dict[str, float]:
    """Return mean bytes by section; "header" is the rest of the file, checksums included."""
    names = list(dict.fromkeys(name for row in rows for name in row["sections"]))
    found = {name: math.fsum(row["sections"].get(name, 0) for row in rows) / len(rows) for name in names}
    return {"header": _mean(rows, "file_bytes") - math.fsum(found.values())} | found


def _mean(rows: Sequence[Row], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)


def _median(rows: Sequence[Row], name: str) -> float:
    return float(np.median([row[name] for row in rows]))
