"""Candidate search: make several plans, measure each, and keep the best by size and damage.

A candidate is a scorer at a base QP. All make files of equal size, and each file is evaluated by the KL of resuming
from it along sampled continuations (`kvcompress.metrics.sampled_kl`). The plan of one tier for all is evaluated too, so
a search never does worse than no plan. Where the target is a damage and not a size, the search is run at about the size
of one tier, and its winner is then brought to the target. Of equal damages the smaller file wins, then the earlier
candidate. The results are kept in the history (`kvcompress.prune.history`), which orders the candidates of the next
search and leaves the last ones out."""

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
so many fall that what is lost lies beyond the evaluator's continuations: on 16 sessions at "high" a search with
these candidates, too, lost .0122 nats instead of .0068."""

MOST_CANDIDATES = 6
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
class Candidate:
    """A planner at a base QP."""

    planner: Planner
    qp: int
    step: int

    @property
    def name(self) -> str:
        """How the history knows it: the scorer, and how far its QP lies above that of one tier."""
        return f"{self.planner.scorer}+{self.step}"


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A candidate's file and what it loses."""

    name: str
    planned: Planned
    kl_nats: float


class CandidateSearch:
    """The search for one session.

    Args:
        codec: Codec of all plans.
        planners: One a scorer, with the same session and constraints.
        damage: The evaluator.
        qp: Quantisation parameter of the file of one tier that the search is about.
        history: What earlier searches found; this one is noted in it.
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
        candidates = {
            candidate.name: candidate
            for planner in planners
            for candidate in (Candidate(planner, clamped_qp(qp + step), step) for step in QP_STEPS)
        }
        self.candidates = [candidates[name] for name in self.history.order(list(candidates))[:MOST_CANDIDATES]]
        self.results: list[Result] = []
        self.tried: list[Result] = []
        self.ran = 0

    def at_bytes(self, most_bytes: int) -> Result:
        """Return the winner of a search at equal bytes.

        Raises:
            InputError: The guaranteed anchors alone are larger.
        """
        found = [self._run(candidate, most_bytes) for candidate in self.candidates]
        results = [result for result in found if result is not None]
        if not results:
            least = min((r.planner.smallest(r.qp) for r in self.candidates), key=lambda planned: planned.file_bytes)
            raise cannot_be_met(most_bytes, least)
        self.results = results
        self.history.note({result.name: result.kl_nats for result in results})
        return min(results, key=lambda result: (result.kl_nats, result.planned.file_bytes))

    def at_damage(self, most_kl_nats: float, about_bytes: int) -> Result | None:
        """Return the smallest file found that loses at most so much, None where the winner of the search never does.

        Args:
            most_kl_nats: What may be lost.
            about_bytes: Size at which the search is run before its winner is brought to the damage; what guaranteed
                anchors cost comes on top where they alone are larger.
        """
        try:
            winner = self.at_bytes(about_bytes)
        except InputError:
            most = max(candidate.planner.smallest(candidate.qp).file_bytes for candidate in self.candidates)
            winner = self.at_bytes(most + about_bytes)
        return self._brought_to(winner, most_kl_nats)

    def _run(self, candidate: Candidate, most_bytes: int) -> Result | None:
        planned = candidate.planner.within(candidate.qp, most_bytes)
        return None if planned is None else self._evaluated(candidate, planned)

    def _evaluated(self, candidate: Candidate, planned: Planned) -> Result:
        # What is evaluated went through bytes: a file, not an intention.
        decoded = WithExact(self.codec).decode(planned.encoded)
        self.ran += 1
        self.progress("plans", self.ran, max(self.ran, len(self.candidates) + SEARCHES))
        result = Result(candidate.name, planned, self.damage.kl(decoded))
        self.tried.append(result)
        return result

    def closest(self) -> Result:
        """Return the smallest file of those tried that lose about as little as the best of them."""
        least = min(result.kl_nats for result in self.tried)
        near = [result for result in self.tried if result.kl_nats <= ABOUT * least]
        return min(near, key=lambda result: (result.planned.file_bytes, result.kl_nats))

    def _brought_to(self, start: Result, most_kl_nats: float) -> Result | None:
        """Return the smallest file found of a result's candidate that loses at most so much.

        A walk on the logarithm of the multiplier, in steps that double until the damage is passed, then bisection.
        """
        candidate = next(candidate for candidate in self.candidates if candidate.name == start.name)
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
            tried = self._evaluated(candidate, candidate.planner.encode(candidate.planner.plan(candidate.qp, 2.0**log)))
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
