"""Sizes at equal damage: how many times smaller a file is than a baseline's would be at the same mean KL.

A family's points are joined by straight lines in the logarithms of KL and size ratio, and read off at our KL. Points
that another of the family beats in both are left out, so a baseline is never blamed for settings that nobody would
choose. Nothing is read off beyond a family's points. Intervals come from resampling sessions, ours and theirs together:
a hard session is hard for both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kvcompress_eval.suite.bootstrap import Estimate, estimate_over

Row = Mapping[str, Any]
Indices = npt.NDArray[np.int64]
Point = tuple[float, float]
"""KL in nats and size ratio."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points of some KL that no other beats in both KL and size ratio, by rising KL."""
    kept = list[Point]()
    for kl, ratio in sorted(points, key=lambda point: (point[0], -point[1])):
        if kl > 0 and (not kept or ratio > kept[-1][1]):
            kept.append((kl, ratio))
    return kept


def ratio_at(points: Sequence[Point], kl_nats: float) -> float | None:
    """Return the size ratio of a family at a KL; None outside its points."""
    for (low, fine), (high, coarse) in pairwise(frontier(points)):
        if low <= kl_nats <= high:
            place = math.log(kl_nats / low) / math.log(high / low)
            return math.exp((1 - place) * math.log(fine) + place * math.log(coarse))
    return None


class Curve:
    """Mean KL and size ratio of a point over any choice of sessions.

    Args:
        rows: One a session, each point's in the same order.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.kl = np.array([float(np.mean(row["per_token_kl_nats"])) for row in rows])
        self.raw = np.array([float(row["raw_bytes"]) for row in rows])
        self.file = np.array([float(row["file_bytes"]) for row in rows])

    def at(self, drawn: Indices) -> Point:
        """Return mean KL and size ratio over the sessions of some indices."""
        return float(self.kl[drawn].mean()), float(self.raw[drawn].sum() / self.file[drawn].sum())


def equal_kl(
    ours: Mapping[str, Sequence[Row]], baselines: Mapping[str, Sequence[Sequence[Row]]]
) -> list[dict[str, Any]]:
    """Return for each point of ours and each family of baselines what its size ratio is at our KL.

    Args:
        ours: Name -> rows, one a session.
        baselines: Family -> its points, each the rows of the same sessions in the same order.

    Returns:
        Names, our KL and size ratio, theirs there, and how many times larger their files are, with an interval. A
        family whose points do not reach our KL is left out.
    """
    found = []
    for name, rows in ours.items():
        own = Curve(rows)
        kl, ratio = own.at(np.arange(len(rows)))
        for family, points in baselines.items():
            at, times = _beside(own, [Curve(point) for point in points])
            if at is not None and times is not None:
                both = {"their_size_ratio": at.to_json(), "times_larger": times.to_json()}
                found.append({"codec": name, "kl_nats": kl, "size_ratio": ratio, "family": family, **both})
    return found


def _beside(own: Curve, curves: Sequence[Curve]) -> tuple[Estimate | None, Estimate | None]:
    """Return a family's size ratio at our KL, and how many times larger its files are."""

    def theirs(drawn: Indices) -> float | None:
        return ratio_at([curve.at(drawn) for curve in curves], own.at(drawn)[0])

    def times(drawn: Indices) -> float | None:
        other = theirs(drawn)
        return None if other is None else own.at(drawn)[1] / other

    return estimate_over(len(own.kl), theirs), estimate_over(len(own.kl), times)
