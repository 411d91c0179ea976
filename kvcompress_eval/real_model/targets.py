"""What was aimed at, and whether it was met: decided here, from measured figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcompress.metrics.fidelity import TIERS

Check = dict[str, Any]

SIZES: dict[float, dict[str, float]] = {
    0.0: {"transparent": 16, "high": 60, "usable": 200},
    0.1: {"transparent": 24, "high": 90, "usable": 300},
    0.2: {"transparent": 32, "high": 120, "usable": 400},
}
"""Least size ratio by quality, where the model recomputes so large a share of its layers."""

TIMES_KVTC: dict[str, float] = {"transparent": 2.2, "high": 4, "usable": 6}
"""How many times larger KVTC is to be at equal KL, where nothing is recomputed."""

NEAR_SHARE = 0.03
"""A share of recomputed layers is taken for the next of the shares above up to that distance."""


def size_targets(share: float) -> dict[str, float]:
    """Return the size ratios aimed at with a share of the layers recomputed; none for shares between."""
    nearest = min(SIZES, key=lambda known: abs(known - share))
    return SIZES[nearest] if abs(nearest - share) <= NEAR_SHARE else {}


def check(measured: Mapping[str, Any], wanted: float, *, at_least: bool, **stated: Any) -> Check:
    """Return one target beside what was measured.

    Args:
        measured: Value, low and high end of its interval.
        wanted: What was aimed at.
        at_least: Whether more is better.
        stated: What the target is about; kept.

    Returns:
        With `met`, and `clear`: whether the whole interval says the same.
    """
    ends = [end for end in (measured["low"], measured["high"]) if end is not None]
    met, *others = (_holds(value, wanted, at_least) for value in (measured["value"], *ends))
    clear = all(other == met for other in others)
    return {**stated, "wanted": wanted, "at_least": at_least, **measured, "met": met, "clear": clear}


def _holds(value: float, wanted: float, at_least: bool) -> bool:
    return value >= wanted if at_least else value <= wanted


def size_checks(points: Sequence[Mapping[str, Any]], shares: Mapping[str, float]) -> list[Check]:
    """Return the targets of size on the sessions of the codec's own source.

    Args:
        points: Of the summary.
        shares: Codec -> share of the layers that it leaves to the model.
    """
    found = []
    for point in points:
        wanted = size_targets(shares[point["codec"]]).get(point["quality"])
        if point["source"] == "test" and wanted is not None:
            named = {"codec": point["codec"], "quality": point["quality"]}
            found.append(check(point["size_ratio"], wanted, at_least=True, **named))
    return found


def kvtc_checks(compared: Sequence[Mapping[str, Any]], shares: Mapping[str, float]) -> list[Check]:
    """Return how much larger KVTC is against the targets, of codecs that recompute nothing."""
    return [
        check(row["times"], TIMES_KVTC[row["quality"]], at_least=True, codec=row["codec"], quality=row["quality"])
        for row in compared
        if shares[row["codec"]] == 0 and row["quality"] in TIMES_KVTC
    ]


def bound_checks(points: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Return the three bounds of every point over the first following tokens, and the KL's over all of them."""
    tiers = {tier.name: tier for tier in TIERS}
    found = []
    for point in points:
        tier = tiers[point["quality"]]
        bounds = (
            ("kl_near_nats", tier.max_kl_nats, False),
            ("lost_near", tier.max_context_lost, False),
            ("top1_near", tier.min_top1_agreement, True),
            ("kl_far_nats", tier.max_kl_nats, False),
        )
        named = {name: point[name] for name in ("source", "codec", "quality")}
        found += [check(point[what], bound, at_least=more, what=what, **named) for what, bound, more in bounds]
    return found
