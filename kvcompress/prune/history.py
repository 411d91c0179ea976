"""Results of earlier candidate searches, which order the candidates of the next one.

Of each candidate the mean of its regret is kept: the logarithm (base 2) of its damage over the winner's at equal bytes,
older searches counting less. The next search starts with the candidates of least regret; those of few searches get an
exploration bonus (UCB, Auer et al. 2002), so that one bad result excludes none. No chance is involved: the same
history always gives the same order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvcompress.errors import FormatError, InputError
from kvcompress.format.atomic import atomic_write
from kvcompress.format.strict_json import read_json

MEMORY = 0.9
"""Decay of the mean with each search."""

EXPLORATION_OCTAVES = 0.5
MOST_REGRET = 8.0
MOST_RACES = 1 << 31


@dataclass(frozen=True, slots=True)
class Record:
    """Statistics of one candidate.

    Attributes:
        searches: How many it took part in.
        wins: How many it won.
        regret: Decayed mean of log2 of its damage over the winner's.
    """

    searches: int = 0
    wins: int = 0
    regret: float = 0.0

    def after(self, regret: float) -> Record:
        """Return the record after one more search."""
        share = max(1 - MEMORY, 1 / (self.searches + 1))
        mean = (1 - share) * self.regret + share * min(regret, MOST_REGRET)
        return Record(self.searches + 1, self.wins + (regret == 0), round(mean, 6))


@dataclass(slots=True)
class History:
    """Records of candidates by name."""

    records: dict[str, Record] = field(default_factory=dict)

    def order(self, names: Sequence[str]) -> list[str]:
        """Return candidates, the most promising first; of equal ones in the order given."""

        def lower_bound(name: str) -> float:
            record = self.records.get(name, Record())
            return record.regret - EXPLORATION_OCTAVES / math.sqrt(record.searches + 1)

        return sorted(names, key=lower_bound)

    def note(self, damages: Mapping[str, float]) -> None:
        """Add a search: the damage of each candidate that took part."""
        best = min(damages.values())
        for name, damage in damages.items():
            regret = math.log2(damage / best) if best > 0 else (0.0 if damage == best else MOST_REGRET)
            self.records[name] = self.records.get(name, Record()).after(regret)


def load_history(path: Path | None) -> History:
    """Return the history of a file, an empty one where there is no such file yet.

    Raises:
        InputError: The file is no history.
    """
    if path is None or not path.exists():
        return History()
    try:
        rows = read_json(path, "a history")["candidates"]
        return History({str(name): _record(*row) for name, row in rows.items()})
    except FormatError as error:
        raise InputError(
            f"is no history of searches ({error.what})", "Name another file or remove it", path=path
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"is no history of searches ({error})", "Name another file or remove it", path=path) from error


def _record(races: int, wins: int, regret: float) -> Record:
    """Return what a row says; raises `ValueError` where no races come to that."""
    if type(races) is not int or type(wins) is not int or not 0 <= wins <= races <= MOST_RACES:
        raise ValueError(f"{wins} wins of {races} races")
    if not 0 <= float(regret) <= MOST_REGRET:
        raise ValueError(f"a regret of {regret}")
    return Record(races, wins, float(regret))


def save_history(path: Path, history: History) -> None:
    """Write a history; it appears whole or not at all."""
    rows = {name: [record.searches, record.wins, record.regret] for name, record in sorted(history.records.items())}
    atomic_write(path, [(json.dumps({"candidates": rows}, indent=1) + "\n").encode()], force=True)
