"""Conformal risk control: what it promises is kept by losses of any distribution, simulated."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.metrics.conformal import (
    CLIP,
    FAR,
    beyond,
    beyond_allowed,
    beyond_stress,
    mean_stress,
    sessions_needed,
    worth_stress,
)

SCALES = np.exp2(-np.arange(0, 12, 0.25))
"""Losses of a session at settings from coarse to fine, relative to its coarsest."""

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=60)


def drawn(shape: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """Losses [count] at the coarsest setting: light tails, heavy tails, a few lost sessions among many good ones."""
    if shape == "uniform":
        return rng.uniform(0, 4, count)
    if shape == "heavy":
        return rng.pareto(1.1, count)
    return np.where(rng.uniform(size=count) < 0.04, 300.0, 0.5)


def chosen(holds: list[bool]) -> int | None:
    """The coarsest setting that holds as every finer one does."""
    found = None
    for index in reversed(range(len(holds))):
        if not holds[index]:
            break
        found = index
    return found


@pytest.mark.parametrize("shape", ["uniform", "heavy", "lost"])
@pytest.mark.parametrize("sessions", [20, 44])
def test_the_next_session_keeps_the_bound_in_expectation(shape: str, sessions: int) -> None:
    rng, bound, losses, far = np.random.default_rng(sessions), 0.02, list[float](), list[float]()
    for _ in range(500):
        *seen, following = drawn(shape, rng, sessions + 1).tolist()
        holds = [mean_stress([one * scale for one in seen], bound) <= 1 for scale in SCALES]
        at = chosen(holds)
        losses.append(0.0 if at is None else min(following * SCALES[at], CLIP * bound))
        holds = [beyond_stress([one * scale for one in seen], bound) <= 1 for scale in SCALES]
        at = chosen(holds)
        far.append(0.0 if at is None else float(following * SCALES[at] > FAR * bound))
    assert fmean(losses) <= bound + 3 * float(np.std(losses)) / math.sqrt(len(losses))
    assert fmean(far) <= 1 / 20 + 3 * float(np.std(far)) / math.sqrt(len(far))


def test_of_context_no_more_than_its_share_is_lost_in_expectation() -> None:
    rng, share, bound, gaps = np.random.default_rng(7), 0.04, 0.02, list[float]()
    for _ in range(500):
        worths = rng.gamma(1.5, 0.3, 31).tolist()
        losses = (rng.pareto(1.3, 31) * np.asarray(worths)).tolist()
        stresses = [worth_stress([one * s for one in losses[:-1]], worths[:-1], share, bound) for s in SCALES]
        at = chosen([stress <= 1 for stress in stresses])
        lost = 0.0 if at is None else min(losses[-1] * SCALES[at], CLIP * bound)
        gaps.append(lost - share * worths[-1])
    assert fmean(gaps) <= 3 * float(np.std(gaps)) / math.sqrt(len(gaps))


@given(LOSSES, st.floats(1e-3, 1))
def test_what_holds_keeps_its_bound_on_the_sessions_themselves(losses: list[float], bound: float) -> None:
    if mean_stress(losses, bound) <= 1:
        assert fmean(losses) <= bound * (1 + 1e-12)
        clipped = sum(min(loss, 4 * bound) for loss in losses)
        assert (clipped + 4 * bound) / (len(losses) + 1) <= bound * (1 + 1e-12)
    held = beyond_stress(losses, bound) <= 1
    assert held == (beyond(losses, bound) <= beyond_allowed(len(losses)))
    assert held == ((beyond(losses, bound) + 1) / (len(losses) + 1) <= 1 / 20)


@given(LOSSES, st.floats(1e-3, 1), st.floats(1, 3))
def test_larger_losses_are_never_less_stress(losses: list[float], bound: float, times: float) -> None:
    more, worths = [loss * times for loss in losses], [1.0] * len(losses)
    assert mean_stress(more, bound) >= mean_stress(losses, bound)
    assert beyond_stress(more, bound) >= beyond_stress(losses, bound)
    assert worth_stress(more, worths, 0.1, bound) >= worth_stress(losses, worths, 0.1, bound)


def test_nineteen_sessions_are_the_fewest_that_say_anything() -> None:
    assert [sessions_needed(count) for count in (0, 4, 18, 19, 40)] == [19, 15, 1, 0, 0]
    assert beyond_stress([0.0] * 18, 1.0) == math.inf
    assert beyond_stress([0.0] * 19, 1.0) == 0
    assert [beyond_allowed(count) for count in (18, 19, 38, 39, 58, 59)] == [-1, 0, 0, 1, 1, 2]


def test_a_context_worth_nothing_keeps_no_share() -> None:
    assert worth_stress([0.0] * 30, [0.0] * 30, 0.1, 0.01) == math.inf
    assert worth_stress([0.0] * 30, [1.0] * 30, 0.1, 0.01) < 1
    assert worth_stress([0.2] * 30, [1.0] * 30, 0.1, 1.0) > 1
