"""How large a run of the suite is: for a bundled model, for one that people run, and for a quick look at either."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvcompress.fit.trials import WORTH_STRIDE

LARGE_PARAMETERS = 50_000_000
"""From here on a session's prefill takes seconds, and what is measured often must be cheap."""

EVERY = 1 << 30

HOPELESS_NATS = 0.24
"""Three times what `usable` allows: no other session would save such a point."""


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """How large a run is.

    Attributes:
        tokens: Tokens stored of each session.
        continuation_tokens: Tokens that follow and are predicted.
        count: Sessions measured.
        thorough: Sessions on which the slow measures are taken too.
        planted: Sessions that numbers are planted in, where none states a fact.
        calibration: Sessions that baselines are fitted to, at most.
        most_points: Points of a curve, at most.
        most_first_nats: A baseline's point that loses more on the first session is measured on no other.
        exact_sessions: Sessions on which a baseline's point is measured that loses next to nothing on the first.
        long_sessions: Sessions that go on over the whole continuation; the others over the first 128 tokens of it.
        few: Fit only the strongest form of a baseline that has several.
        quick: Whether this is the quick run.
        worth_stride: What the context is worth is measured at every so many-th position.
        control_sessions: Sessions on which the noise floor is measured.
        bound_sessions: Sessions whose latents the bound is of.
        featured_baselines: Baselines, beside this project's codecs, that lengths and links are measured for.
        hop_baselines: Those of them that drift is measured for.
        hops: Times a session is stored and resumed along its way.
        hop_sessions: Sessions that drift is measured on.
        timed_lengths: Lengths at which restoring is timed, as shares of `tokens`.
        repeats: Times of each timed call.
    """

    tokens: int = 1024
    continuation_tokens: int = 128
    count: int = 24
    thorough: int = 3
    planted: int = 6
    calibration: int = 32
    most_points: int = 32
    most_first_nats: float = math.inf
    exact_sessions: int = EVERY
    long_sessions: int = EVERY
    few: bool = False
    quick: bool = False
    worth_stride: int = 1
    control_sessions: int = 6
    bound_sessions: int = 24
    featured_baselines: int = 14
    hop_baselines: int = 14
    hops: int = 10
    hop_sessions: int = 3
    timed_lengths: tuple[float, ...] = (0.25, 0.5, 1, 2)
    repeats: int = 5


FULL = SuiteSettings()
QUICK = SuiteSettings(
    count=4,
    thorough=1,
    planted=2,
    calibration=10,
    most_points=3,
    few=True,
    quick=True,
    hop_sessions=1,
    featured_baselines=2,
)


def for_model(parameters: int, *, quick: bool) -> SuiteSettings:
    """Return the size of a run that a model of so many parameters allows.

    Of a large one a full run goes on over 512 tokens on some sessions; it then has figures over the first 128 and over
    all.
    """
    size = QUICK if quick else FULL
    if parameters < LARGE_PARAMETERS:
        return size
    shared = replace(
        size,
        worth_stride=WORTH_STRIDE,
        control_sessions=1,
        repeats=1,
        timed_lengths=(0.5, 1),
        most_first_nats=HOPELESS_NATS,
        exact_sessions=2,
        few=True,
    )
    if quick:
        return replace(
            shared,
            count=2,
            thorough=0,
            calibration=8,
            bound_sessions=1,
            featured_baselines=1,
            hop_baselines=0,
            hops=3,
            hop_sessions=1,
        )
    return replace(
        shared,
        continuation_tokens=512,
        long_sessions=4,
        thorough=0,
        calibration=24,
        most_points=5,
        control_sessions=2,
        bound_sessions=4,
        featured_baselines=2,
        hop_baselines=0,
        hop_sessions=2,
        timed_lengths=(0.25, 0.5, 1),
        repeats=3,
    )
