"""How many times larger another codec's files are at the same KL: read off its curve, in logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kvcompress_eval.real_model.interval import over_sessions
from kvcompress_eval.suite.rows import Row

REACH = 2.0
"""A curve is followed beyond its last point by at most this factor of KL."""


def ratio_at(curve: Sequence[tuple[float, float]], wanted_kl_nats: float) -> float:
    """Return the size ratio of a curve at a KL: a line in logarithms between neighbouring points.

    Args:
        curve: KL in nats and size ratio of its points, both positive, in any order.
        wanted_kl_nats: Where to read it off.

    Returns:
        NaN where it has fewer than two points or the KL lies too far outside them.
    """
    points = sorted((math.log(kl), math.log(ratio)) for kl, ratio in curve)
    wanted = math.log(wanted_kl_nats)
    if len(points) < 2 or not points[0][0] - math.log(REACH) <= wanted <= points[-1][0] + math.log(REACH):
        return math.nan
    for (x0, y0), (x1, y1) in pairwise(points):
        if wanted <= x1 or (x1, y1) == points[-1]:
            share = (wanted - x0) / (x1 - x0) if x1 > x0 else 0.0
            return math.exp(y0 + share * (y1 - y0))
    raise AssertionError("unreachable: the last pair is always taken")


def kl_and_ratio(rows: Sequence[Row], drawn: Any) -> tuple[float, float]:
    """Return mean KL over the first following tokens and the size ratio of some of the rows, by index."""
    chosen = [rows[index] for index in drawn]
    kl = sum(row["kl_near_nats"] for row in chosen) / len(chosen)
    return kl, sum(row["raw_bytes"] for row in chosen) / sum(row["file_bytes"] for row in chosen)


def advantage(ours: Sequence[Row], forms: Mapping[str, Sequence[Sequence[Row]]]) -> dict[str, Any] | None:
    """Return how many times larger files of another codec, in its best form, are at our mean KL.

    Args:
        ours: Rows of one point of ours, a session each.
        forms: Form -> its points, each the rows of the same sessions in the same order.

    Returns:
        Our KL and size ratio on these sessions, the best form, its size ratio there, and the interval of the factor;
        None where our KL is nothing or no curve reaches it.
    """
    everyone = np.arange(len(ours))
    kl, ratio = kl_and_ratio(ours, everyone)
    if not kl > 0:
        return None
    at = {form: _at(points, everyone, kl) for form, points in forms.items()}
    reached = {form: found for form, found in at.items() if math.isfinite(found)}
    if not reached:
        return None
    best = max(reached, key=lambda form: reached[form])
    factor = over_sessions(len(ours), lambda drawn: _factor(ours, forms, drawn))
    return {
        "sessions": len(ours),
        "kl_nats": kl,
        "size_ratio": ratio,
        "form": best,
        "kvtc_size_ratio": reached[best],
        "by_form": reached,
        "times": factor.to_json(),
    }


def _at(points: Sequence[Sequence[Row]], drawn: Any, kl_nats: float) -> float:
    curve = [kl_and_ratio(rows, drawn) for rows in points]
    return ratio_at([(kl, ratio) for kl, ratio in curve if kl > 0], kl_nats)


def _factor(ours: Sequence[Row], forms: Mapping[str, Sequence[Sequence[Row]]], drawn: Any) -> float:
    kl, ratio = kl_and_ratio(ours, drawn)
    found = [_at(points, drawn, kl) for points in forms.values()] if kl > 0 else []
    finite = [one for one in found if math.isfinite(one)]
    return ratio / max(finite) if finite else math.nan
