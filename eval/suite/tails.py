"""What a mean hides: the worst tokens, the worst step, and how many sessions lie beyond each tier's bound.

A promise of a mean holds for a codec that does nothing to most tokens and great harm to a few. All figures come with
intervals by resampling sessions; that of the worst step says how much it hangs on single sessions, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.suite.bootstrap import estimate_mean, estimate_quantiles, estimate_statistic
from kvcompress.metrics.fidelity import TIERS

Row = Mapping[str, Any]

STEP_NATS = 0.1
"""A step beyond that is one at which the model visibly thinks something else."""

TAIL = 0.999


def tails(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the tail of one codec over sessions.

    Args:
        rows: One a session, each with `per_token_kl_nats`.

    Returns:
        The KL that 99.9 % of the tokens stay under, the worst step, the share of sessions whose mean KL lies beyond the
        bound of each tier, and the share of sessions with a step beyond .1 nats.
    """
    per_session = [row["per_token_kl_nats"] for row in rows]
    means = [float(np.mean(values)) for values in per_session]
    worst = [max(values) for values in per_session]
    (tail,) = estimate_quantiles(per_session, [TAIL])
    return {
        "kl_p999_nats": tail.to_json(),
        "worst_step_nats": estimate_statistic(worst, lambda sample: sample.max(-1)).to_json(),
        "sessions_beyond": {tier.name: _share(means, tier.max_kl_nats) for tier in TIERS},
        "sessions_with_bad_step": _share(worst, STEP_NATS),
    }


def _share(values: Sequence[float], bound: float) -> dict[str, Any]:
    return estimate_mean([float(value > bound) for value in values]).to_json()
