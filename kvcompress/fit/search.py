"""Search for the coarsest QP that holds on all sessions; the outer loop runs over sessions.

A few sessions, the scouts, run a ladder of QPs and then the QPs where their stress seems to cross 1. From there on
only measurements of all sessions count: a QP that does not hold is followed by a finer one, one that holds with room
to spare by a coarser one. Everything follows from the measurements alone, so a search that goes on from a ledger ends
where an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.promise import RESIDUAL, Setting
from kvcompress.codec.residual import RESIDUAL_FINER
from kvcompress.fit.ledger import Facts, Losses
from kvcompress.fit.trials import Bench
from kvcompress.fit.verdict import foreseen, may_hold, means_foreseen, stresses
from kvcompress.metrics.fidelity import Tier

FINEST = HIGHEST_QP // 2
LADDER = tuple(range(0, FINEST + 1, 40))
SCOUTS = 6
"""A measurement decodes a session and runs the model: a fit spends a third of its time on them."""

HOPELESS, SEEN = 1.15, 12
"""A candidate whose first so many sessions, if all were like them, would break a bound by so much is given up."""

FALL = 0.05
"""Stress falls by about this much of itself from QP to QP: KL by 3 to 6 %."""

HEAD_START = 3
"""Candidates are so much finer than where the scouts cross: few sessions miss the worst ones, and a failed pass costs
more than the bytes. On SmolLM2-135M all three that began at the crossing failed, after 27, 38 and 12 sessions of 40."""

MOST_COARSER = 2
"""Coarser QPs tried where one holds; each costs a measurement of all sessions."""

LEAST_STEP, LEAST_COARSER = 3, 4
"""Smaller steps change a file by less than a session differs from the next; a quarter octave is worth a coarser try."""

Progress = Callable[[str, int, int], None]


@dataclass(slots=True, eq=False)
class Search:
    """Where the search for one quality on one path stands.

    Attributes:
        tier: The quality and its bounds.
        qp: Candidate to be measured on all sessions, None where the search is over.
        step: How far to go if it does not hold.
        coarser: How many coarser ones were tried.
        failed: Rates that do not hold.
    """

    tier: Tier
    qp: int | None
    step: int = LEAST_STEP
    coarser: int = 0
    failed: set[int] = field(default_factory=set)


class Sessions:
    """All sessions, as measured by a bench.

    Args:
        bench: Measures.
        progress: Called with stage, done, total.
    """

    def __init__(self, bench: Bench, progress: Progress) -> None:
        self.bench, self.progress = bench, progress
        self.count = len(bench.trials)
        scouts = min(SCOUTS, self.count)
        self.scouts = [index * self.count // scouts for index in range(scouts)]
        self.order = [*self.scouts, *(index for index in range(self.count) if index not in self.scouts)]
        self.complete: set[Setting] = set()

    def scout(self, settings: Sequence[Setting]) -> None:
        """Measure settings on the scouts."""
        for done, session in enumerate(self.scouts, 1):
            self.bench.measure(session, settings)
            self.progress("where to look", done, len(self.scouts))

    def measure(self, setting: Setting) -> None:
        """Measure a setting on all sessions, whatever comes of it."""
        for done, session in enumerate(self.order, 1):
            self.bench.measure(session, [setting])
            self.progress("measured on sessions", done, self.count)
        self.complete.add(setting)

    def verify(self, wanted: dict[Setting, list[Tier]]) -> None:
        """Measure settings on all sessions, but give one up as soon as no tier that asked for it is likely to hold.

        What was given up promises nothing, so whether it would have held after all is no matter to the guarantee.
        """
        running = {setting: tiers for setting, tiers in wanted.items() if setting not in self.complete}
        for done, session in enumerate(self.order, 1):
            self.bench.measure(session, list(running))
            seen = self.order[:done]
            for setting, tiers in list(running.items()):
                if not any(self._is_likely(setting, tier, seen) for tier in tiers):
                    del running[setting]
            if not running:
                return
            self.progress("verified on sessions", done, self.count)
        self.complete |= set(running)

    def _is_likely(self, setting: Setting, tier: Tier, seen: Sequence[int]) -> bool:
        """Tell whether a setting may still hold, given the sessions seen."""
        losses = self.losses(setting, seen)
        if not may_hold(losses, tier, self.count):
            return False
        return len(seen) < SEEN or means_foreseen(losses, self.facts(seen), tier, self.count) <= HOPELESS

    def stress(self, setting: Setting, tier: Tier) -> float:
        """Return the largest stress of a setting over all sessions; as foreseen where it was given up."""
        if setting not in self.complete:
            seen = [session for session in self.order if (session, setting) in self.bench.ledger.losses]
            return foreseen(self.losses(setting, seen), self.facts(seen), tier, self.count)
        everyone = range(self.count)
        return max(stresses(self.losses(setting, everyone), self.facts(everyone), tier).values())

    def foreseen(self, setting: Setting, tier: Tier) -> float:
        """Return the stress of all sessions if they were like the scouts."""
        return foreseen(self.losses(setting, self.scouts), self.facts(self.scouts), tier, self.count)

    def losses(self, setting: Setting, sessions: Sequence[int]) -> list[Losses]:
        """Return what some sessions lose at a setting."""
        return [self.bench.ledger.losses[session, setting] for session in sessions]

    def facts(self, sessions: Sequence[int]) -> list[Facts]:
        """Return what some sessions are."""
        return [self.bench.ledger.facts[session] for session in sessions]


class Path:
    """The QPs of one kind of setting.

    Args:
        kind: "latents" or "residual".
        sessions: What is measured.
    """

    def __init__(self, kind: str, sessions: Sessions) -> None:
        self.kind, self.sessions = kind, sessions
        self.ran: set[int] = set()

    def setting(self, qp: int) -> Setting:
        """Return the setting of a QP."""
        return Setting(self.kind, qp, qp + RESIDUAL_FINER if self.kind == RESIDUAL else None)

    def coarsest(self, tiers: Sequence[Tier]) -> dict[str, Setting]:
        """Return the coarsest setting found to hold of each tier, by name; those without one are left out."""
        searches = [Search(tier, qp) for tier, qp in zip(tiers, self._located(tiers), strict=True)]
        while open_ones := [search for search in searches if search.qp is not None]:
            wanted: dict[Setting, list[Tier]] = {}
            for search in open_ones:
                assert search.qp is not None
                wanted.setdefault(self.setting(search.qp), []).append(search.tier)
                self.ran.add(search.qp)
            self.sessions.verify(wanted)
            for search in open_ones:
                self._move(search)
        held = {search.tier.name: self._held(search) for search in searches}
        return {name: self.setting(qp) for name, qp in held.items() if qp is not None}

    def _located(self, tiers: Sequence[Tier]) -> list[int | None]:
        """Return where to begin for each tier, None where the scouts say that not even the finest QP holds."""
        self.sessions.scout([self.setting(qp) for qp in LADDER])
        first = [self._crossing(tier, LADDER) for tier in tiers]
        more = sorted({qp for qp in first if qp is not None} - set(LADDER))
        self.sessions.scout([self.setting(qp) for qp in more])
        found = [self._crossing(tier, sorted({*LADDER, *more})) for tier in tiers]
        return [None if qp is None else min(FINEST, qp + HEAD_START) for qp in found]

    def _crossing(self, tier: Tier, qps: Sequence[int]) -> int | None:
        """Return the QP where the scouts' stress comes down to 1, on a line in logarithms; None where it does not."""
        held: tuple[int, float] | None = None
        for qp in reversed(qps):
            stress = self.sessions.foreseen(self.setting(qp), tier)
            if stress > 1:
                return None if held is None else between(qp, stress, *held)
            held = (qp, stress)
        return None if held is None else held[0]

    def _move(self, search: Search) -> None:
        """Go finer after a QP that does not hold, coarser after one that holds with room to spare."""
        assert search.qp is not None
        stress = self.sessions.stress(self.setting(search.qp), search.tier)
        if stress > 1 or self.setting(search.qp) not in self.sessions.complete:
            search.failed.add(search.qp)
        held, low = self._held(search), max(search.failed, default=-1)
        if held is None:
            told = math.ceil(math.log(max(stress, 1.0)) / FALL) if math.isfinite(stress) else 0
            search.qp = None if low >= FINEST else min(FINEST, low + max(search.step, told))
            search.step *= 2
            return
        spare = self.sessions.stress(self.setting(held), search.tier)
        qp = max(0, held - round(-math.log(max(spare, 1e-9)) / FALL), (low + held) // 2)
        search.coarser += 1
        search.qp = None if held - qp < LEAST_COARSER or search.coarser > MOST_COARSER else qp

    def _held(self, search: Search) -> int | None:
        """Return the coarsest QP that holds on all sessions, as far as no finer one that ran was seen to fail."""
        found = None
        for qp in sorted(self.ran, reverse=True):
            if qp in search.failed or self.sessions.stress(self.setting(qp), search.tier) > 1:
                break
            found = qp if self.setting(qp) in self.sessions.complete else found
        return found


def between(failed: int, above: float, held: int, below: float) -> int:
    """Return the QP where the logarithm of the stress crosses 0, on the line between two QPs; rounded finer."""
    share = math.log(above) / (math.log(above) - math.log(max(below, 1e-9))) if math.isfinite(above) else 1.0
    return min(held, failed + math.ceil(share * (held - failed)))
