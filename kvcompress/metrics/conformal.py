"""Conformal risk control: turn losses measured on held-out sessions into a guarantee.

Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control" (arXiv 2208.02814). Let n sessions and the next
one be exchangeable (drawn alike, in any order), and let a loss never rise as the setting becomes finer, and be clipped
at B. Of a path of settings take the coarsest whose

    (sum of the n clipped losses + B) / (n + 1) <= bound.

Then the *expected* clipped loss of the next session is within the bound, whatever the distribution. The expectation is
over all n + 1 sessions: it is no statement about a single one, nor about sessions of another kind. The added B stands
for the session not seen yet, as if it were the worst.

Three losses are held to that, each on its own:

- KL and top-1 loss against their bounds, B being four bounds;
- context lost, which is a ratio: min(KL_i, B) - share * worth_i is at most B and must not be positive in expectation,
  so E min(KL, B) <= share * E worth, with the B of the KL, which is known before anything is measured.

A mean hides sessions that are lost altogether. "Has a loss beyond twice the bound" is a loss of 0 or 1, and the same
theorem with B = 1 keeps its probability within 1/20: (beyond + 1) / (n + 1) <= 1/20, which takes 19 sessions.

Everything here is a *stress*, a number that holds where it is at most 1 and grows as a setting becomes coarser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

CLIP = 4.0
"""Losses are clipped at so many bounds."""

FAR = 2.0
"""A session is beyond where its loss is more than so many bounds."""

ONE_IN = 20
"""At most one session in so many may be beyond."""


def sessions_needed(sessions: int) -> int:
    """Return how many more sessions than these a promise takes, 0 where they suffice."""
    return max(0, ONE_IN - 1 - sessions)


def mean_stress(losses: Sequence[float], bound: float) -> float:
    """Return the bounded risk of a loss over its bound; the plain mean, unclipped, must keep it too.

    Args:
        losses: Of each session, not negative.
        bound: Of their expectation, more than 0.
    """
    most = CLIP * bound
    clipped = sum(min(loss, most) for loss in losses)
    return max((clipped + most) / (len(losses) + 1), sum(losses) / max(len(losses), 1)) / bound


def worth_stress(losses: Sequence[float], worths: Sequence[float], share: float, bound: float) -> float:
    """Return the bounded risk of a loss over a share of what it is compared with; infinite where that is nothing.

    Args:
        losses: KL of each session, not negative.
        worths: What the context of each is worth in nats, not negative.
        share: The largest fraction of the worth that may be lost.
        bound: Of the KL itself; fixes where it is clipped.
    """
    allowed, most = share * sum(worths), CLIP * bound
    if allowed <= 0:
        return math.inf
    return max(sum(min(loss, most) for loss in losses) + most, sum(losses)) / allowed


def beyond(losses: Sequence[float], bound: float) -> int:
    """Return how many sessions lose more than twice the bound."""
    return sum(loss > FAR * bound for loss in losses)


def beyond_allowed(sessions: int) -> int:
    """Return how many of so many sessions may be beyond; -1 where there are too few for any statement."""
    return (sessions + 1) // ONE_IN - 1


def beyond_stress(losses: Sequence[float], bound: float) -> float:
    """Return the largest loss but those that may be beyond, over twice the bound; infinite of too few sessions."""
    allowed = beyond_allowed(len(losses))
    if allowed < 0:
        return math.inf
    if bound <= 0:
        return math.inf
    return sorted(losses, reverse=True)[allowed] / (FAR * bound)
