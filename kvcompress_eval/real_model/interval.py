"""Figures over sessions with 95 % intervals: sessions are resampled, never tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvcompress_eval.suite.bootstrap import resampled

Floats = npt.NDArray[np.float64]
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure over sessions.

    Attributes:
        value: The figure itself.
        low: Lower end of its 95 % interval; None for a single session.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


def over_sessions(sessions: int, statistic: Callable[[npt.NDArray[np.int64]], float]) -> Interval:
    """Return a statistic of a set of sessions with its interval.

    Args:
        sessions: How many there are.
        statistic: Takes indices of sessions, repeated ones among them; NaN where these say nothing.
    """
    value = statistic(np.arange(sessions))
    if sessions < 2:
        return Interval(value)
    found = np.array([statistic(drawn) for drawn in resampled(sessions)])
    found = found[np.isfinite(found)]
    if len(found) < len(resampled(sessions)) / 2:  # most resamples say nothing, so no interval does
        return Interval(value)
    low, high = np.percentile(found, PERCENTILES)
    return Interval(value, float(low), float(high))


def mean_of(values: Sequence[float]) -> Interval:
    """Return the mean over sessions."""
    held = np.asarray(values, np.float64)
    return over_sessions(len(held), lambda drawn: float(held[drawn].mean()))


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Return the ratio of two sums over sessions, which are resampled together."""
    upper, lower = np.asarray(above, np.float64), np.asarray(below, np.float64)

    def ratio(drawn: npt.NDArray[np.int64]) -> float:
        total = float(lower[drawn].sum())
        return float(upper[drawn].sum()) / total if total > 0 else float("nan")

    return over_sessions(len(upper), ratio)
