"""A synthetic result of the fidelity suite: every part is there, and every number follows from a formula."""

from __future__ import annotations

import math
from typing import Any

from kvcompress.metrics.fidelity import tier_of
from kvcompress_eval.suite.published import published

RAW_BYTES, WORTH_NATS, TOKENS, LAYERS = 3_145_728.0, 0.77, 1024, 6
VALUES = RAW_BYTES / 2
CATEGORIES = {"dialogue": 10, "facts": 8, "instructions": 6}
# Family: size ratios of its points, and the KL that a size ratio of 10 costs it.
FAMILIES: dict[str, tuple[tuple[float, ...], float]] = {
    "raw": ((1.0,), 0.0),
    "zstd": ((1.3,), 0.0),
    "tinyvae": ((41.0, 89.1, 260.6, 915.3), 0.00025),
    "kvtc": ((6.2, 8.7, 15.0, 26.0, 41.0), 0.006),
    "int": ((1.98, 3.9, 7.6), 0.05),
    "kivi": ((3.6, 6.4), 0.04),
    "cachegen": ((4.1, 6.8, 9.9), 0.03),
    "turboquant": ((3.8, 5.2, 7.7), 0.025),
    "kvquant": ((3.9, 5.1, 7.4), 0.02),
    "gear": ((3.1, 5.9), 0.06),
    "palu": ((2.5, 5.0), 0.5),
    "snapkv": ((2.0, 4.0, 8.0), 0.9),
    "streaming": ((2.0, 8.0), 1.6),
    "deltakv": ((3.4, 5.5), 0.08),
}


def estimate(mean: float, share: float | None = 0.06) -> dict[str, float | None]:
    """Return an estimate whose standard error is a share of its mean."""
    return {"mean": mean, "standard_error": None if share is None else abs(mean) * share}


def interval(mean: float, most: float = 1.0) -> dict[str, float | None]:
    """Return an estimate with an interval of a fifth of its mean to each side, cut at the most it can be."""
    return estimate(mean, 0.1) | {"low": 0.8 * mean, "high": min(1.2 * mean, most)}


def tails(kl: float) -> dict[str, Any]:
    """Return the tail of a codec with this mean KL."""
    return {
        "kl_p999_nats": interval(60 * kl, math.inf),
        "worst_step_nats": interval(120 * kl, math.inf),
        "sessions_beyond": {
            tier: interval(kl / (kl + bound))
            for tier, bound in (("transparent", 0.005), ("high", 0.02), ("usable", 0.08))
        },
        "sessions_with_bad_step": interval(kl / (kl + 0.001)),
    }


def score(kl: float) -> dict[str, Any]:
    """Return the score of a codec with this mean KL; recall is lost for good above a tenth of a nat."""
    kept = max(0.0, 1 - kl / WORTH_NATS)
    parts = {"kl": kept, "trajectory": 1 / (1 + 4 * kl), "recall": 0.9 if kl < 0.1 else 0.0, "perturbed": 0.9 * kept}
    whole = 0.0 if min(parts.values()) <= 0 else 4 / sum(1 / part for part in parts.values())
    return {"harmonic": interval(whole), "components": {name: interval(part) for name, part in parts.items()}}


def metrics(kl: float) -> dict[str, Any]:
    """Return every metric of a codec with this mean KL."""
    agreement = 1 / (1 + 1.6 * kl)
    times = {"kl_p50_nats": 0.02, "kl_p90_nats": 2.0, "kl_p99_nats": 15.0, "kl_p999_nats": 60.0, "kl_max_nats": 120.0}
    return {
        "kl_nats": estimate(kl),
        **{name: estimate(factor * kl) for name, factor in times.items()},
        "context_lost": estimate(kl / WORTH_NATS),
        "top1_agreement": estimate(agreement, 0.004),
        "top5_agreement": estimate(agreement**0.2, 0.001),
        "rms_probability_change": estimate(min(0.4 * math.sqrt(kl), 1.0)),
        "ppl_ratio": estimate(1 + kl, 0.01),
        "sensitive_kl_nats": estimate(4 * kl),
        "sensitive_top1_agreement": estimate(agreement**2, 0.01),
        "first_divergence_tokens": estimate(64 * agreement),
        "divergence_margin_nats": estimate(0.3 * math.sqrt(kl)),
        "branch_divergence_nats": estimate(0.1 * kl),
    }


def equal_kl(point: dict[str, Any]) -> dict[str, Any]:
    """Return what the family kvtc weighs at a point's KL."""
    ratio, kl = point["size"]["size_ratio"]["mean"], point["fidelity"]["kl_nats"]["mean"]
    theirs = 10 * (kl / FAMILIES["kvtc"][1]) ** 0.8
    at = {"their_size_ratio": interval(theirs, math.inf), "times_larger": interval(ratio / theirs, math.inf)}
    return {"codec": point["name"], "kl_nats": kl, "size_ratio": ratio, "family": "kvtc", **at}


def recall(kl: float, answered: int = 65, asked: int = 68) -> dict[str, Any]:
    """Return facts recalled: fewer with more damage, and fewer from far away."""
    buckets = []
    for index, start in enumerate((0, 256, 512, 768)):
        known = answered // 4
        exact = round(known / (1 + (1 + index) * kl))
        counts = {"asked": asked // 4, "exact": exact, "exact_uncompressed": known}
        buckets.append({"from_tokens": start, "to_tokens": start + 256} | counts)
    exact = sum(int(row["exact"]) for row in buckets)
    return {"asked": asked, "exact": exact, "exact_uncompressed": 4 * (answered // 4), "by_distance": buckets}


def codec(family: str, ratio: float, kl: float, name: str | None = None) -> dict[str, Any]:
    """Return a measured codec."""
    file_bytes, exact = RAW_BYTES / ratio, kl == 0
    fractions = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0]
    quantiles = [[share, kl * 0.02 * (share / (1.0001 - share)) ** 0.95] for share in fractions]
    return {
        "name": name or f"{family}-{ratio:g}x",
        "family": family,
        "failed": None,
        "size": {
            "file_bytes": file_bytes,
            "raw_bytes": RAW_BYTES,
            "size_ratio": estimate(ratio, 0.02),
            "smallest_size_ratio": 0.9 * ratio,
            "bits_per_value": 8 * file_bytes / VALUES,
            "sections": {"latents": 0.94 * file_bytes, "tokens": 0.04 * file_bytes, "origin": 0.02 * file_bytes},
        },
        "codec_bytes": 4_100_000 if family in ("tinyvae", "kvtc") else 0,
        "pays_back_after_sessions": 1.4 if family in ("tinyvae", "kvtc") else None,
        "tier": tier_of(kl, kl / WORTH_NATS, 1 / (1 + 1.6 * kl)),
        "fidelity": metrics(kl),
        "kl_quantiles": quantiles,
        "tails": tails(kl),
        "score": score(kl),
        "stored": {"latents": 23, "int8": 1} if family == "tinyvae" else {family: 24},
        "unlike": 1 if family == "tinyvae" else 0,
        "by_category": {category: metrics(kl * (0.8 + 0.2 * index)) for index, category in enumerate(CATEGORIES)},
        "recall": recall(kl),
        "instructions": {"checked": 12, "kept": round(12 / (1 + kl)), "kept_uncompressed": 12},
        "attention_error_by_layer": [math.sqrt(kl) * (1 + 0.3 * layer) for layer in range(LAYERS)],
        "seconds": {"encode": 0.02 + 0.002 * ratio**0.5, "decode": 0.03, "restore": 0.046},
        "megabytes_per_second": {"encode": 80.0, "decode": 105.0},
        "peak_memory_bytes": None if exact else 61_000_000,
    }


def points(family: str) -> list[dict[str, Any]]:
    """Return the codecs of a family."""
    ratios, scale = FAMILIES[family]
    return [codec(family, ratio, scale * (ratio / 10) ** 1.25) for ratio in ratios]


def economics(names: dict[str, float]) -> dict[str, Any]:
    """Return seconds and bytes for codecs given with their size ratios."""
    links = {
        name: {speed: 0.046 + 8 * RAW_BYTES / ratio / (float(speed) * 1e6) for speed in ("10", "100", "1000")}
        for name, ratio in names.items()
    }
    lengths = (256, 512, 1024, 2048)
    return {
        "prefill_seconds": 0.101,
        "restore_seconds": dict.fromkeys(names, 0.046),
        "lengths": [
            {
                "tokens": tokens,
                "prefill_seconds": 0.101 * (tokens / 1024) ** 1.3,
                "restore_seconds": {
                    name: 0.012 + 0.033 * tokens / 1024 + 0.004 / ratio for name, ratio in names.items()
                },
            }
            for tokens in lengths
        ],
        "break_even_tokens": {name: 420 if ratio > 2 else None for name, ratio in names.items()},
        "link_seconds": links,
        "memory": [
            {
                "tokens": tokens,
                "raw_bytes": 3072 * tokens,
                "coded_bytes": {name: int(900 + 3072 * tokens / ratio) for name, ratio in names.items()},
            }
            for tokens in (512, 1024, 4096, 16384)
        ],
        "longest_context_tokens": {
            name: {"1 GB": int(1e9 / 3072 * ratio), "8 GB": int(8e9 / 3072 * ratio)} for name, ratio in names.items()
        },
    }


def example() -> dict[str, Any]:
    """Return a complete result of fourteen families and one codec that failed."""
    codecs = [point for family in FAMILIES for point in points(family)]
    ratios = {point["name"]: point["size"]["size_ratio"]["mean"] for point in codecs}
    failure = {"name": "xkv-rank64", "family": "xkv", "failed": "singular matrix in layer 3: 48 sessions are too few"}
    ours = [point for point in codecs if point["family"] == "tinyvae"]
    chosen = [*ours, *(point for point in codecs if point["name"] in ("kvtc-8.7x", "kvtc-26x"))]
    return {
        "schema": 1,
        "title": "Fidelity suite of the bundled model",
        "command": "python -m eval suite --out reports/suite",
        "commit": "0f3c2a9",
        "started": "2026-03-01T12:00:00+00:00",
        "wall_seconds": 1834.2,
        "quick": False,
        "versions": {"kvcompress": "0.1.0", "torch": "2.13.0"},
        "machine": {"processor": "a processor", "threads": 2, "memory_bytes": 16_000_000_000},
        "seeds": {"branches": 7},
        "model": {
            "name": "reference-lm",
            "weights": "sha256:9d0c",
            "parameters": 4_600_000,
            "file_bytes": 18_400_000,
            "layers": LAYERS,
            "values_per_token": 1536,
            "dtype": "float32",
        },
        "sessions": {
            "file": "examples/sessions.jsonl",
            "count": 24,
            "tokens": TOKENS,
            "continuation_tokens": 128,
            "categories": dict(CATEGORIES),
            "context_worth_nats": estimate(WORTH_NATS),
            "sensitive_share": 0.21,
        },
        "warning": None,
        "codecs": [*codecs, failure],
        "controls": [
            {"name": "prefill again", "kl_nats": 2.1e-12, "kl_max_nats": 3e-10, "top1_agreement": 1.0},
            {"name": "prefill again in bfloat16", "kl_nats": 3.2e-5, "kl_max_nats": 0.004, "top1_agreement": 0.998},
        ],
        "noise_floor_nats": 2.1e-12,
        "original_formats": {"kvtc with DEFLATE": 14.1, "cachegen container": 6.5},
        "bound": [
            {"name": point["name"], "kl_nats": kl, "size_ratio": 1.18 * ratios[point["name"]], "rate_over_bound": 1.18}
            for point in ours
            for kl in (point["fidelity"]["kl_nats"]["mean"],)
        ],
        "equal_kl": [equal_kl(point) for point in ours],
        "published": published(),
        "hops": {
            point["name"]: [
                {"hop": hop, "kl_nats": kl * hop**0.6, "top1_agreement": 1 / (1 + 1.6 * kl * hop)}
                for hop in range(1, 6)
            ]
            for point in chosen
            for kl in (point["fidelity"]["kl_nats"]["mean"],)
        },
        "economics": economics(ratios),
        "bits_by_layer": {
            point["name"]: [16 / ratios[point["name"]] * (0.6 + 0.15 * layer) for layer in range(LAYERS)]
            for point in chosen
        },
        "strip": strip(ours[1]["name"]),
    }


def strip(name: str) -> dict[str, Any]:
    """Return a session shaded by bits and its continuation shaded by damage."""
    turn = ["<|user|>", "My locker", " code", " is", " 4821.", "<|end|>", "\n", "<|assistant|>", "Noted.", "<|end|>"]
    stored = ["<|bos|>", *turn * 12]
    following = ["What", " is", " my", " locker", " code", "?", "\n", "It", " is", " 4821", "."] * 6
    return {
        "codec": name,
        "session": "s000",
        "tokens": stored,
        "bits": [float(7 * index % 331) for index in range(len(stored))],
        "continuation": following,
        "damage_nats": [10.0 ** (-6 + 6.5 * (index * 37 % 66) / 66) for index in range(len(following))],
    }
