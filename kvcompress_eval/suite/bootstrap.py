"""Standard errors by resampling sessions (Efron's bootstrap): the tokens of one session are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BOOTSTRAP_SEED = 20251
RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over sessions.

    Attributes:
        mean: The figure itself.
        standard_error: Its standard deviation over resampled sets of sessions; None for a single session.
        low: Lower end of its 95 % interval, by the percentiles of the resampled figures; None for a single session.
        high: Upper end.
    """

    mean: float
    standard_error: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


def resampled(sessions: int) -> npt.NDArray[np.int64]:
    """Return [RESAMPLES, sessions] indices drawn with replacement; the same for every figure of a run."""
    return np.random.default_rng(BOOTSTRAP_SEED).integers(0, sessions, (RESAMPLES, sessions))


def _estimated(figure: float, replicates: Floats, sessions: int) -> Estimate:
    """Return a figure with what its replicates over resampled sessions say of it; nothing of too few."""
    if sessions < 2 or len(replicates) < 2:
        return Estimate(figure, None)
    low, high = np.percentile(replicates, PERCENTILES)
    return Estimate(figure, float(replicates.std(ddof=1)), float(low), float(high))


def estimate_statistic(values: Sequence[float], statistic: Callable[[Floats], Any]) -> Estimate:
    """Return a statistic of one figure a session.

    Args:
        values: One figure a session, at least one.
        statistic: Maps [..., sessions] to [...].
    """
    sample = np.asarray(values, np.float64)
    replicates = np.asarray(statistic(sample[resampled(len(sample))]))
    return _estimated(float(statistic(sample)), replicates, len(sample))


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean over sessions."""
    return estimate_statistic(values, lambda sample: sample.mean(-1))


def estimate_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Return the ratio of two sums over sessions, which are resampled together.

    Resamples whose denominator is zero say nothing and are left out.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    drawn = resampled(len(above))
    sums = above[drawn].sum(1), below[drawn].sum(1)
    replicates = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    total = float(below.sum())
    mean = float(above.sum()) / total if total > 0 else 0.0
    return _estimated(mean, replicates, len(above))


def estimate_quantiles(per_session: Sequence[Sequence[float]], fractions: Sequence[float]) -> list[Estimate]:
    """Return quantiles over the positions of all sessions, with errors over sessions.

    Args:
        per_session: The figures of each session's positions.
        fractions: Of the quantiles.
    """
    values = [np.asarray(session, np.float64) for session in per_session]
    found = np.quantile(np.concatenate(values), fractions)
    if len(values) == 1:
        return [Estimate(float(value), None) for value in found]
    replicates = np.stack(
        [np.quantile(np.concatenate([values[i] for i in drawn]), fractions) for drawn in resampled(len(values))[:200]]
    )
    return [_estimated(float(value), column, len(values)) for value, column in zip(found, replicates.T, strict=True)]


def estimate_over(sessions: int, statistic: Callable[[npt.NDArray[np.int64]], float | None]) -> Estimate | None:
    """Return a statistic of a set of sessions.

    Args:
        sessions: How many there are.
        statistic: Takes indices of sessions, repeated ones among them; None where these say nothing.

    Returns:
        None where all sessions together say nothing. Where more than half of the resamples do, there is no interval.
    """
    figure = statistic(np.arange(sessions))
    if figure is None:
        return None
    drawn = [statistic(indices) for indices in resampled(sessions)] if sessions > 1 else []
    replicates = np.array([one for one in drawn if one is not None], np.float64)
    return _estimated(figure, replicates if 2 * len(replicates) > len(drawn) else replicates[:0], sessions)
