"""Which codecs a report speaks of, in which order, and how it spells a mean with its standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvcompress.metrics.fidelity import TIERS
from kvcompress.report.spelling import NOTHING, with_error, with_interval
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.equal_kl import ratio_at

OURS, CHIEF_BASELINE = "tinyvae", "kvtc"
RECOMPUTED = "tokens"
"""The family that stores no cache at all: always the smallest, so it is shown but never called the best baseline."""

TIER_NAMES = tuple(tier.name for tier in TIERS)
KL_BOUNDS_NATS = {tier.name: tier.max_kl_nats for tier in TIERS}

Codec = Mapping[str, Any]
Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Best:
    """The codecs with the largest size ratio that keep a tier's promise; None where none does."""

    tier: str
    ours: Codec | None
    baseline: Codec | None


def family_order(family: str) -> tuple[int, str]:
    """Return the key that puts our families first, the chief baseline second and the others by name."""
    return (0 if is_ours(family) else {CHIEF_BASELINE: 1}.get(family, 2)), family


def is_ours(family: str) -> bool:
    """Tell whether a family is a codec of this project; of several, the second has a name of its own behind a colon."""
    return family == OURS or family.startswith(f"{OURS}:")


def measured(result: Result) -> list[Codec]:
    """Return the codecs that were measured, by family and then by size ratio."""
    found = [codec for codec in result["codecs"] if codec["failed"] is None]
    return sorted(found, key=lambda codec: (family_order(codec["family"]), size_ratio(codec), codec["name"]))


def failed(result: Result) -> list[Codec]:
    """Return the codecs that could not be measured, by family and name."""
    found = [codec for codec in result["codecs"] if codec["failed"] is not None]
    return sorted(found, key=lambda codec: (family_order(codec["family"]), codec["name"]))


def families(result: Result) -> list[str]:
    """Return the families with a measured codec, ours first."""
    return sorted({codec["family"] for codec in measured(result)}, key=family_order)


def size_ratio(codec: Codec) -> float:
    """Return the mean size ratio."""
    return float(codec["size"]["size_ratio"]["mean"])


def kl_nats(codec: Codec) -> float:
    """Return the mean KL."""
    return float(codec["fidelity"]["kl_nats"]["mean"])


def keeps(codec: Codec, tier: str) -> bool:
    """Return whether a codec keeps a tier's promise; a stricter tier keeps a looser one's too."""
    return codec["tier"] is not None and TIER_NAMES.index(codec["tier"]) <= TIER_NAMES.index(tier)


def smallest_file(codecs: Sequence[Codec], tier: str) -> Codec | None:
    """Return the codec with the largest size ratio among those that keep the tier.

    A point of ours that bears the tier's name stands before all others that do as well: its QP was chosen on other
    sessions, so it is not the luckiest of many. Baselines have the luck.
    """
    kept = [codec for codec in codecs if keeps(codec, tier)]
    named = [codec for codec in kept if is_ours(codec["family"]) and codec["name"] == f"{codec['family']}-{tier}"]
    return max(named or kept, key=size_ratio, default=None)


def baseline_at_same_kl(result: Result, codec: Codec) -> tuple[str, float] | None:
    """Return the baseline family with the largest size ratio at a codec's mean KL, and that ratio.

    It is read off between a family's points, see `kvcompress_eval.suite.equal_kl`. Families whose points do not lie on
    both sides are left out, and so is the one that stores no cache.
    """
    found: list[tuple[float, str]] = []
    for family in families(result):
        if is_ours(family) or family == RECOMPUTED:
            continue
        points = [(kl_nats(row), size_ratio(row)) for row in measured(result) if row["family"] == family]
        ratio = ratio_at(points, kl_nats(codec))
        if ratio is not None:
            found.append((ratio, family))
    if not found:
        return None
    ratio, family = max(found)
    return family, ratio


def interval_at_same_kl(result: Result, codec: Codec, family: str) -> str | None:
    """Return how many times larger a baseline family's files are at a codec's KL, with interval; None if unknown."""
    for row in result.get("equal_kl") or []:
        if (row["codec"], row["family"]) == (codec["name"], family):
            return with_interval(row["times_larger"], "times")
    return None


def promised_word(codec: Codec) -> str | None:
    """Return the quality word that a point of ours is stored at; None of baselines and of fixed QPs."""
    word = codec["name"].rpartition("-")[2]
    named = is_ours(codec["family"]) and codec["name"] == f"{codec['family']}-{word}"
    return word if named and word in TIER_NAMES else None


def best_points(result: Result) -> list[Best]:
    """Return for each tier our best codec and the best of all others."""
    codecs = measured(result)
    ours = [codec for codec in codecs if is_ours(codec["family"])]
    baselines = [codec for codec in codecs if not is_ours(codec["family"]) and codec["family"] != RECOMPUTED]
    return [Best(tier, smallest_file(ours, tier), smallest_file(baselines, tier)) for tier in TIER_NAMES]


def shown(result: Result) -> list[Codec]:
    """Return the few codecs worth a curve: the best of ours and of the baselines in each tier.

    Where a side keeps no tier at all, its codec with the least KL stands for it.
    """
    points = best_points(result)
    chosen = {codec["name"] for best in points for codec in (best.ours, best.baseline) if codec is not None}
    codecs = measured(result)
    for ours in (True, False):
        side = [codec for codec in codecs if is_ours(codec["family"]) == ours]
        if side and not chosen & {codec["name"] for codec in side}:
            chosen.add(min(side, key=kl_nats)["name"])
    return [codec for codec in codecs if codec["name"] in chosen]


def recalled(codec: Codec) -> str:
    """Return how many of the asked facts came back."""
    recall = codec["recall"]
    return f"{recall['exact']} of {recall['asked']}" if recall else NOTHING


def recalled_uncompressed(result: Result) -> str:
    """Return how many facts the exact cache gives back; empty where nothing was asked."""
    found = next((codec["recall"] for codec in measured(result) if codec["recall"]), None)
    return f"{found['exact_uncompressed']} of {found['asked']}" if found else ""


def continued(result: Result) -> str:
    """Return over how many tokens sessions go on: some over all of them, others over the first only."""
    sessions = result["sessions"]
    tokens = f"{sessions['continuation_tokens']:,} tokens continued"
    whole = max(((codec.get("whole") or {}).get("sessions") or 0 for codec in measured(result)), default=0)
    if not 0 < whole < sessions["count"]:
        return tokens
    return f"{tokens} on {whole:,} of them and {NEAR_TOKENS} on the others"


def circumstances(result: Result) -> str:
    """Return sessions, tokens and what the context is worth in one sentence without its full stop."""
    sessions = result["sessions"]
    worth = with_error(sessions["context_worth_nats"], "worth")
    return (
        f"{'A quick run: means' if result['quick'] else 'Means'} over {sessions['count']:,} sessions of "
        f"{sessions['tokens']:,} tokens, {continued(result)}; "
        f"context worth {worth} nats"
    )
