"""What a result of the fidelity suite holds, version 1, and the strict check of it before anything is written.

The description is built from the rules of `rules.py`. A field after `optional` may be absent or null, which says that
it was not measured; a field that is nullable must be there all the same. Units stand in the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from kvcompress.errors import InputError
from kvcompress.metrics.fidelity import TIERS
from kvcompress_eval.suite.report.rules import (
    Flag,
    ListOf,
    MapOf,
    Nullable,
    Number,
    OneOf,
    Record,
    Row,
    Rule,
    Scalar,
    Text,
    refuse,
)

SCHEMA_VERSION = 1
LINK_MEGABITS = ("10", "100", "1000")
TIER_NAMES = tuple(tier.name for tier in TIERS)

SHARE = Number(low=0.0, high=1.0)
AMOUNT = Number(low=0.0)
POSITIVE = Number(low=0.0, above=True)
COUNT = Number(low=0, whole=True)
SEVERAL = Number(low=0, above=True, whole=True)
SEED = Number(whole=True)


def _estimate(figure: Rule) -> Record:
    """Return the rule of a figure over sessions, with its standard error and, since some version, its interval."""
    return Record({"mean": figure, "standard_error": Nullable(AMOUNT)}, {"low": figure, "high": figure})


AMOUNT_ESTIMATE, SHARE_ESTIMATE, RATIO_ESTIMATE = _estimate(AMOUNT), _estimate(SHARE), _estimate(POSITIVE)
SIGNED_ESTIMATE = _estimate(Number())  # a margin is a difference and may have either sign

METRICS: dict[str, Rule] = {
    "kl_nats": AMOUNT_ESTIMATE,
    "kl_p50_nats": AMOUNT_ESTIMATE,
    "kl_p90_nats": AMOUNT_ESTIMATE,
    "kl_p99_nats": AMOUNT_ESTIMATE,
    "kl_p999_nats": AMOUNT_ESTIMATE,
    "kl_max_nats": AMOUNT_ESTIMATE,
    "context_lost": AMOUNT_ESTIMATE,
    "top1_agreement": SHARE_ESTIMATE,
    "top5_agreement": SHARE_ESTIMATE,
    "rms_probability_change": SHARE_ESTIMATE,
    "ppl_ratio": RATIO_ESTIMATE,
    # Null where no position of the sessions is sensitive to its context.
    "sensitive_kl_nats": Nullable(AMOUNT_ESTIMATE),
    "sensitive_top1_agreement": Nullable(SHARE_ESTIMATE),
}
OPTIONAL_METRICS: dict[str, Rule] = {
    "first_divergence_tokens": AMOUNT_ESTIMATE,
    "divergence_margin_nats": SIGNED_ESTIMATE,
    "branch_divergence_nats": AMOUNT_ESTIMATE,
}

SIZE = Record(
    {
        "file_bytes": POSITIVE,
        "raw_bytes": POSITIVE,
        "size_ratio": RATIO_ESTIMATE,
        "smallest_size_ratio": POSITIVE,
        "bits_per_value": AMOUNT,
        "sections": MapOf(AMOUNT),
    }
)
RECALLED = {"asked": COUNT, "exact": COUNT, "exact_uncompressed": COUNT}
BY_DISTANCE = ListOf(Record({"from_tokens": COUNT, "to_tokens": COUNT} | RECALLED))
MEASURED: dict[str, Rule] = {
    "size": SIZE,
    "codec_bytes": COUNT,
    "pays_back_after_sessions": Nullable(AMOUNT),
    "tier": Nullable(OneOf(TIER_NAMES)),
    "fidelity": Record(METRICS, OPTIONAL_METRICS),
    "kl_quantiles": ListOf(Row((SHARE, AMOUNT))),
    "by_category": MapOf(Record({}, METRICS | OPTIONAL_METRICS)),
    "recall": Nullable(Record(RECALLED | {"by_distance": BY_DISTANCE})),
    "instructions": Nullable(Record({"checked": COUNT, "kept": COUNT, "kept_uncompressed": COUNT})),
    "seconds": Record({"encode": AMOUNT, "decode": AMOUNT, "restore": AMOUNT}),
    "megabytes_per_second": Record({"encode": AMOUNT, "decode": AMOUNT}),
}
TAILS = Record(
    {
        "kl_p999_nats": AMOUNT_ESTIMATE,
        "worst_step_nats": AMOUNT_ESTIMATE,
        "sessions_beyond": Record(dict.fromkeys(TIER_NAMES, SHARE_ESTIMATE)),
        "sessions_with_bad_step": SHARE_ESTIMATE,
    },
    {"positions": SEVERAL},
)
SCORE = Record(
    {
        "harmonic": Nullable(SHARE_ESTIMATE),
        "components": Record(dict.fromkeys(("kl", "trajectory", "recall", "perturbed"), Nullable(SHARE_ESTIMATE))),
    }
)
SOMETIMES_MEASURED: dict[str, Rule] = {
    "attention_error_by_layer": ListOf(AMOUNT),
    "peak_memory_bytes": COUNT,
    "tails": TAILS,
    "score": SCORE,
    "whole": Record(
        {"fidelity": Record(METRICS), "tails": TAILS}, {"sessions": SEVERAL}
    ),  # where the continuation goes beyond 128 tokens
    "sessions": SEVERAL,
    "stored": MapOf(COUNT),
    "unlike": COUNT,
}
NAMED: dict[str, Rule] = {"name": Text(filled=True), "family": Text(filled=True)}
CODEC = Record(NAMED | {"failed": Nullable(Text())} | MEASURED, SOMETIMES_MEASURED)
FAILED_CODEC = Record(NAMED | {"failed": Text(filled=True)}, MEASURED | SOMETIMES_MEASURED)

BY_CODEC_SECONDS = MapOf(POSITIVE)
ECONOMICS = Record(
    {
        "prefill_seconds": POSITIVE,
        "restore_seconds": BY_CODEC_SECONDS,
        "break_even_tokens": MapOf(Nullable(COUNT)),
        "link_seconds": MapOf(Record(dict.fromkeys(LINK_MEGABITS, POSITIVE))),
        "memory": ListOf(Record({"tokens": SEVERAL, "raw_bytes": SEVERAL, "coded_bytes": MapOf(SEVERAL)})),
        "longest_context_tokens": MapOf(MapOf(COUNT)),
    },
    {"lengths": ListOf(Record({"tokens": SEVERAL, "prefill_seconds": POSITIVE, "restore_seconds": BY_CODEC_SECONDS}))},
)
MODEL = Record(
    {
        "name": Text(),
        "weights": Text(),
        "parameters": COUNT,
        "file_bytes": COUNT,
        "layers": COUNT,
        "values_per_token": COUNT,
        "dtype": Text(),
    }
)
SESSIONS = Record(
    {
        "file": Text(),
        "count": COUNT,
        "tokens": COUNT,
        "continuation_tokens": COUNT,
        "categories": MapOf(COUNT),
        "context_worth_nats": AMOUNT_ESTIMATE,
        "sensitive_share": SHARE,
    },
    {"worth_stride": SEVERAL},
)
CONTROL = Record({"name": Text(filled=True), "kl_nats": AMOUNT, "kl_max_nats": AMOUNT, "top1_agreement": SHARE})
STRIP = Record(
    {"codec": Text(), "session": Text(), "bits": ListOf(AMOUNT), "damage_nats": ListOf(AMOUNT)},
    {"tokens": ListOf(Text()), "continuation": ListOf(Text())},  # absent where a session's text may not be shown
)
HOP = Record(
    {"hop": COUNT, "kl_nats": AMOUNT, "top1_agreement": SHARE},
    {
        "kl_low_nats": AMOUNT,
        "kl_high_nats": AMOUNT,
        "context_lost": AMOUNT,
        "tier": OneOf(TIER_NAMES),
        "sessions": SEVERAL,
    },
)
EQUAL_KL = Record(
    {
        "codec": Text(filled=True),
        "kl_nats": POSITIVE,
        "size_ratio": POSITIVE,
        "family": Text(filled=True),
        "their_size_ratio": RATIO_ESTIMATE,
        "times_larger": RATIO_ESTIMATE,
    }
)
PUBLISHED = Record(
    {
        "name": Text(filled=True),
        "source": Text(filled=True),
        "stored": ListOf(Text(filled=True)),
        "size_ratio": ListOf(POSITIVE),
        "kl_nats": ListOf(AMOUNT),
        "top1": Text(filled=True),
    }
)
BOUND = Record(
    {"name": Text(), "kl_nats": AMOUNT, "size_ratio": POSITIVE, "rate_over_bound": AMOUNT},
    {"measured_size_ratio": POSITIVE, "sessions": SEVERAL},  # over the sessions that the bound is of
)
RESULT = Record(
    {
        "schema": COUNT,
        "title": Text(filled=True),
        "command": Text(),
        "commit": Nullable(Text()),
        "started": Text(),
        "wall_seconds": AMOUNT,
        "quick": Flag(),
        "versions": MapOf(Text()),
        "machine": Record({"processor": Text(), "threads": COUNT}, others=Scalar()),
        "seeds": MapOf(SEED),
        "model": MODEL,
        "sessions": SESSIONS,
        "warning": Nullable(Text()),
        "codecs": ListOf(CODEC),  # those that failed are checked against their own record
        "controls": ListOf(CONTROL),
        "noise_floor_nats": Nullable(AMOUNT),
        "economics": ECONOMICS,
    },
    {
        "original_formats": MapOf(POSITIVE),
        "bound": ListOf(BOUND),
        "equal_kl": ListOf(EQUAL_KL),
        "published": ListOf(PUBLISHED),
        "hops": MapOf(ListOf(HOP)),
        "bits_by_layer": MapOf(ListOf(AMOUNT)),
        "strip": STRIP,
    },
)


def validate(result: object) -> None:
    """Check a result completely; nothing is changed or filled in.

    Args:
        result: What the suite measured, as JSON can hold it.

    Raises:
        InputError: Another schema, or a field that is missing, unknown, of another type, not finite, out of its range
            or at odds with another; the message begins with the field's path.
    """
    if not isinstance(result, Mapping):
        raise refuse("result", "is not an object")
    found = result.get("schema")
    if found != SCHEMA_VERSION or isinstance(found, bool):
        what = "is missing" if "schema" not in result else f"is {found!r:.40}, but this program reads {SCHEMA_VERSION}"
        raise InputError(f"schema {what}", "Use the version of the program that made the result")
    codecs = result.get("codecs")
    if isinstance(codecs, list | tuple):
        for index, codec in enumerate(codecs):
            failed = isinstance(codec, Mapping) and codec.get("failed") is not None
            (FAILED_CODEC if failed else CODEC).check(codec, f"codecs[{index}]")
        # Every codec has been checked by the record that fits it.
        result = {**result, "codecs": []}
    RESULT.check(result, "")
    _require_consistent(result, codecs or [])


def _require_consistent(result: Mapping[str, Any], codecs: Any) -> None:
    try:
        datetime.fromisoformat(result["started"])
    except ValueError as error:
        raise refuse("started", "is not a date and time in ISO 8601") from error
    names: set[str] = set()
    for index, codec in enumerate(codecs):
        if codec["name"] in names:
            raise refuse(f"codecs[{index}].name", f"{codec['name']!r:.60} occurs twice")
        names.add(codec["name"])
    for path, name in _mentions(result):
        if name not in names:
            raise refuse(path, f"names {name!r:.60}, which is not among the codecs")
    strip = result.get("strip") or {}
    for values, texts in (("bits", "tokens"), ("damage_nats", "continuation")):
        if strip.get(texts) is not None and len(strip[values]) != len(strip[texts]):
            what = f"has {len(strip[values])} entries, but strip.{texts} has {len(strip[texts])}"
            raise refuse(f"strip.{values}", what)


def _mentions(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every mention of a codec outside the list of codecs, with its path."""
    economics = result["economics"]
    for part in ("restore_seconds", "break_even_tokens", "link_seconds", "longest_context_tokens"):
        yield from ((f"economics.{part}", name) for name in economics[part])
    for index, row in enumerate(economics["memory"]):
        yield from ((f"economics.memory[{index}].coded_bytes", name) for name in row["coded_bytes"])
    for index, row in enumerate(economics.get("lengths") or []):
        yield from ((f"economics.lengths[{index}].restore_seconds", name) for name in row["restore_seconds"])
    for index, row in enumerate(result.get("bound") or []):
        yield f"bound[{index}].name", row["name"]
    for index, row in enumerate(result.get("equal_kl") or []):
        yield f"equal_kl[{index}].codec", row["codec"]
    for part in ("hops", "bits_by_layer"):
        yield from ((part, name) for name in result.get(part) or {})
    if result.get("strip"):
        yield "strip.codec", result["strip"]["codec"]
