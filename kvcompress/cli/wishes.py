"""What the options of `kvcompress encode` say about a plan; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvcompress.errors import InputError

PLANS = ("auto", "quick", "none")


@dataclass(frozen=True, slots=True)
class PlanWishes:
    """Options that have to do with a plan; see `kvcompress encode --help`."""

    plan: str | None
    scorers: list[str]
    patterns: list[str]
    messages: list[int]
    keep_fraction: float | None
    guarantees: list[str]
    table: Path | None
    races: Path | None
    evidence: Path | None

    def wanted(self) -> bool:
        """Tell whether a plan is wanted.

        Raises:
            InputError: The options contradict each other, or a fraction is none.
        """
        if self.plan is not None and self.plan not in PLANS:
            raise InputError(f"--plan {self.plan!r} is unknown", "Use auto, quick or none")
        fraction = self.keep_fraction
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"a keep fraction of {fraction:g} is not above 0 and at most 1", "Ask for one such as 0.5")
        options = {
            "--scorer": self.scorers,
            "--keep": self.patterns,
            "--keep-message": self.messages,
            "--keep-fraction": fraction is not None,
            "--guarantee": self.guarantees,
            "--plan-table": self.table,
            "--races": self.races,
            "--evidence": self.evidence,
        }
        given = [name for name, value in options.items() if value]
        if self.plan == "none" and given:
            raise InputError(f"{given[0]} needs a plan", "Leave --plan none out")
        return self.plan in ("auto", "quick") or bool(given)
