"""Race and trace: candidate plans run side by side, the best by measured rate and damage is committed.

A runner is a scorer at a base QP. All run at equal bytes and each is judged by the KL of resuming from its decoded
file along sampled continuations (`kvcompress.metrics.sampled_kl`); the plan of one tier for all runs too, so a race never
loses to not planning. Where the aim is a damage and not a size, the leader of the history is brought to it first, the
others run at its bytes, and the winner is brought to the aim. Of equal damages the smaller file wins, then the earlier
runner. What the losers did is noted in the history (`kvcompress.prune.history`), which says who runs first next time
and who is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvcompress.codec.exact_tokens import WithExact
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.prune.history import History
from kvcompress.prune.planner import LEAST_WEIGHT, MOST_WEIGHT, Planned, Planner, cannot_be_met, clamped_qp
from kvcompress.snapshot import KVSnapshot

QP_STEPS = (0, 12)
"""Rates of the coarse tier above that of one tier: where most tokens fall to prior only, the others can be finer. At 20
so many fall that what is lost lies beyond the judge's continuations: on 16 sessions at "high" a race with these runners, too,
lost .0122 nats instead of .0068."""

MOST_RUNNERS = 6
SEARCHES = 6
LEAST_LOG, MOST_LOG = math.log2(LEAST_WEIGHT), math.log2(MOST_WEIGHT)
NEAR = 0.95
"""A damage of at least this share of the one allowed is near enough."""

ABOUT = 1.25

ONE_TIER = "one tier"

Progress = Callable[[str, int, int], None]


class Damage(Protocol):
    """Says what a decoded cache loses."""

    def kl(self, decoded: KVSnapshot) -> float:
        """Return the mean KL in nats."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """A planner at a base QP."""

    planner: Planner
    qp: int
    step: int

    @property
    def name(self) -> str:
        """How the history knows it: the scorer, and how far its QP lies above that of one tier."""
        return f"{self.planner.scorer}+{self.step}"


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """A runner's file and what it loses."""

    name: str
    planned: Planned
    kl_nats: float


class Race:
    """The race of one session.

    Args:
        codec: Codec of all plans.
        planners: One a scorer, with the same session and constraints.
        damage: The judge.
        qp: Quantisation parameter of the file of one tier that the race is about.
        history: What earlier races found; this one is noted in it.
        progress: Called after each file with "plans", how many ran, how many are foreseen.
    """

    def __init__(
        self,
        codec: TinyVAECodec,
        planners: Sequence[Planner],
        damage: Damage,
        qp: int,
        history: History | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.codec, self.damage, self.progress = codec, damage, progress
        self.history = history if history is not None else History()
        runners = {
            runner.name: runner
            for planner in planners
            for runner in (Runner(planner, clamped_qp(qp + step), step) for step in QP_STEPS)
        }
        self.runners = [runners[name] for name in self.history.order(list(runners))[:MOST_RUNNERS]]
        self.finishes: list[Finish] = []
        self.tried: list[Finish] = []
        self.ran = 0

    def at_bytes(self, most_bytes: int) -> Finish:
        """Return the winner of a race at equal bytes.

        Raises:
            InputError: The guaranteed anchors alone are larger.
        """
        found = [self._run(runner, most_bytes) for runner in self.runners]
        finishes = [finish for finish in found if finish is not None]
        if not finishes:
            least = min((r.planner.smallest(r.qp) for r in self.runners), key=lambda planned: planned.file_bytes)
            raise cannot_be_met(most_bytes, least)
        self.finishes = finishes
        self.history.note({finish.name: finish.kl_nats for finish in finishes})
        return min(finishes, key=lambda finish: (finish.kl_nats, finish.planned.file_bytes))

    def at_damage(self, most_kl_nats: float, about_bytes: int) -> Finish | None:
        """Return the smallest file found that loses at most so much, None where the winner of the race never does.

        Args:
            most_kl_nats: What may be lost.
            about_bytes: Size at which the race is run before its winner is brought to the damage; what guaranteed
                anchors cost comes on top where they alone are larger.
        """
        try:
            winner = self.at_bytes(about_bytes)
        except InputError:
            most = max(runner.planner.smallest(runner.qp).file_bytes for runner in self.runners)
            winner = self.at_bytes(most + about_bytes)
        return self._brought_to(winner, most_kl_nats)

    def _run(self, runner: Runner, most_bytes: int) -> Finish | None:
        planned = runner.planner.within(runner.qp, most_bytes)
        return None if planned is None else self._judged(runner, planned)

    def _judged(self, runner: Runner, planned: Planned) -> Finish:
        # What is judged went through bytes: a file, not an intention.
        decoded = WithExact(self.codec).decode(planned.encoded)
        self.ran += 1
        self.progress("plans", self.ran, max(self.ran, len(self.runners) + SEARCHES))
        finish = Finish(runner.name, planned, self.damage.kl(decoded))
        self.tried.append(finish)
        return finish

    def closest(self) -> Finish:
        """Return the smallest file of those tried that lose about as little as the best of them."""
        least = min(finish.kl_nats for finish in self.tried)
        near = [finish for finish in self.tried if finish.kl_nats <= ABOUT * least]
        return min(near, key=lambda finish: (finish.planned.file_bytes, finish.kl_nats))

    def _brought_to(self, start: Finish, most_kl_nats: float) -> Finish | None:
        """Return the smallest file found of a finish's runner that loses at most so much.

        A walk on the logarithm of the multiplier, in steps that double until the damage is passed, then bisection.
        """
        runner = next(runner for runner in self.runners if runner.name == start.name)
        best = start if start.kl_nats <= most_kl_nats else None
        log = math.log2(start.planned.plan.weight)
        held, broken = (log, None) if best is not None else (None, log)
        step = 0.5
        for _ in range(SEARCHES):
            if held is not None and broken is not None:
                log = (held + broken) / 2
            else:
                log, step = (log - step, 2 * step) if broken is None else (log + step, 2 * step)
            if not LEAST_LOG <= log <= MOST_LOG:
                break
            tried = self._judged(runner, runner.planner.encode(runner.planner.plan(runner.qp, 2.0**log)))
            if tried.kl_nats > most_kl_nats:
                broken = log
                continue
            held = log
            best = tried if best is None or tried.planned.file_bytes < best.planned.file_bytes else best
            if tried.kl_nats >= NEAR * most_kl_nats:
                break
        return best


def one_tier_kl(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int, damage: Damage) -> tuple[Encoded, int, float]:
    """Return the file of one tier at a QP, its size, and what it loses."""
    encoded = codec.encode(snapshot, qp)
    return encoded, len(to_bytes(encoded)), damage.kl(codec.decode(encoded))
