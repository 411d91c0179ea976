"""What a mean hides: the worst tokens, the worst step, and how many sessions lie beyond each tier's bound.

A promise of a mean holds for a codec that does nothing to most tokens and great harm to a few. Percentiles come with
intervals by resampling sessions, and shares of sessions with Wilson's (E. B. Wilson, "Probable inference, the law of
succession, and statistical inference", 1927): resampling sessions none of which is beyond a bound would say that none
ever will be. The worst step is the largest that was seen and has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kvcompress.metrics.fidelity import TIERS
from kvcompress_eval.suite.bootstrap import Estimate, estimate_mean, estimate_quantiles

Row = Mapping[str, Any]

STEP_NATS = 0.1
"""A step beyond that is one at which the model visibly thinks something else."""

TAIL = 0.999
NORMAL_95 = 1.959963984540054  # what a normal variable stays within 19 times of 20


def tails(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the tail of one codec over sessions.

    Args:
        rows: One a session, each with `per_token_kl_nats`.

    Returns:
        How many positions there are, the KL that 99.9 % of them stay under, the worst step, the share of sessions
        whose mean KL lies beyond the bound of each tier, and the share of sessions with a step beyond .1 nats.
    """
    per_session = [row["per_token_kl_nats"] for row in rows]
    means = [float(np.mean(values)) for values in per_session]
    worst = [max(values) for values in per_session]
    (tail,) = estimate_quantiles(per_session, [TAIL])
    return {
        "positions": sum(map(len, per_session)),
        "kl_p999_nats": tail.to_json(),
        "worst_step_nats": Estimate(max(worst), None).to_json(),
        "sessions_beyond": {tier.name: _share(means, tier.max_kl_nats) for tier in TIERS},
        "sessions_with_bad_step": _share(worst, STEP_NATS),
    }


def _share(values: Sequence[float], bound: float) -> dict[str, Any]:
    """Return the share of values beyond a bound, with Wilson's interval; none of a single value."""
    beyond = [float(value > bound) for value in values]
    estimate = estimate_mean(beyond)
    if estimate.standard_error is None:
        return estimate.to_json()
    low, high = wilson(int(sum(beyond)), len(beyond))
    return replace(estimate, low=low, high=high).to_json()


def wilson(found: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share that was seen in `found` of `of` cases, at least one."""
    share, spread = found / of, NORMAL_95**2 / of
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding may leave the share outside
