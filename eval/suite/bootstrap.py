"""Standard errors by resampling sessions (Efron's bootstrap): the tokens of one session are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BOOTSTRAP_SEED = 20251
RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over sessions.

    Attributes:
        mean: The figure itself.
        standard_error: Its standard deviation over resampled sets of sessions; None for a single session.
    """

    mean: float
    standard_error: float | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


def resampled(sessions: int) -> npt.NDArray[np.int64]:
    """Return [RESAMPLES, sessions] indices drawn with replacement; the same for every figure of a run."""
    return np.random.default_rng(BOOTSTRAP_SEED).integers(0, sessions, (RESAMPLES, sessions))


def _error(replicates: Floats, sessions: int) -> float | None:
    return float(replicates.std(ddof=1)) if sessions > 1 else None


def estimate_statistic(values: Sequence[float], statistic: Callable[[Floats], Any]) -> Estimate:
    """Return a statistic of one figure a session.

    Args:
        values: One figure a session, at least one.
        statistic: Maps [..., sessions] to [...].
    """
    sample = np.asarray(values, np.float64)
    replicates = np.asarray(statistic(sample[resampled(len(sample))]))
    return Estimate(float(statistic(sample)), _error(replicates, len(sample)))


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
    return Estimate(mean, _error(replicates, len(above)) if len(replicates) > 1 else None)


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
    return [
        Estimate(float(value), _error(column, len(values))) for value, column in zip(found, replicates.T, strict=True)
    ]
