"""One figure that fails loudly: the harmonic mean of what is kept of four things, each in [0, 1].

```
kl          1 - mean KL / what the context is worth, over the first 128 tokens that followed
trajectory  tokens of the exact cache's greedy path that are said before the first difference, over its length
recall      planted facts that are still given exactly, of those that the exact cache gives
perturbed   the least over typos, case and paraphrase of 1 - mean KL / worth of the context, over perturbed prompts

score = 4 / (1 / kl + 1 / trajectory + 1 / recall + 1 / perturbed)
```
Sums run over sessions before they are divided; what falls below 0 is 0. A component that is 0 makes the score 0:
nothing makes up for a lost ability. One that could not be measured makes the score absent: it is never left out of the
mean. Intervals come from resampling sessions, all components together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvcompress_eval.suite.bootstrap import Estimate, estimate_over
from kvcompress_eval.suite.perturb import PERTURBATIONS

Row = Mapping[str, Any]
Indices = npt.NDArray[np.int64]
Component = Callable[[Indices], float | None]


def harmonic(components: Mapping[str, float | None]) -> float | None:
    """Return the harmonic mean of components in [0, 1]; None where one is missing, 0 where one is 0."""
    values = list(components.values())
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        return None
    if min(known) <= 0:
        return 0.0
    return len(known) / sum(1 / value for value in known)


def score(rows: Sequence[Row]) -> dict[str, Any]:
    """Return score and components of one codec over sessions, each an estimate, or None where it was not measured.

    Args:
        rows: One a session.
    """
    parts = components(rows)

    def together(drawn: Indices) -> float | None:
        return harmonic({name: part(drawn) for name, part in parts.items()})

    found = {name: _estimate(len(rows), part) for name, part in parts.items()}
    return {"harmonic": _estimate(len(rows), together), "components": found}


def components(rows: Sequence[Row]) -> dict[str, Component]:
    """Return each component as a function of which sessions count."""
    rules = {rule: _kept_of(*_sums(rows, rule)) for rule in PERTURBATIONS}
    means = np.array([float(np.mean(row["per_token_kl_nats"])) for row in rows])
    asked = [[*row.get("questions", []), *row.get("planted", [])] for row in rows]
    exact = np.array([sum(bool(one[2]) for one in found) for found in asked], np.float64)
    both = np.array([sum(bool(one[1] and one[2]) for one in found) for found in asked], np.float64)
    return {
        "kl": _kept_of(means, np.array([row["worth_nats"] for row in rows])),
        "trajectory": _ratio(_column(rows, "first_divergence_tokens"), _column(rows, "trajectory_tokens")),
        "recall": _ratio(both, exact),
        "perturbed": lambda drawn: _least([rule(drawn) for rule in rules.values()]),
    }


def _least(values: Sequence[float | None]) -> float | None:
    """Return the least value; None where one is missing."""
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def _sums(rows: Sequence[Row], rule: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    found = [row.get("perturbed", {}).get(rule, {}) for row in rows]
    kl, worth = ([one.get(name, 0.0) for one in found] for name in ("kl_nats", "worth_nats"))
    return np.array(kl, np.float64), np.array(worth, np.float64)


def _column(rows: Sequence[Row], name: str) -> npt.NDArray[np.float64]:
    return np.array([row.get(name) or 0.0 for row in rows], np.float64)


def _ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> Component:
    """Return a ratio of sums; None where nothing was measured."""

    def part(drawn: Indices) -> float | None:
        total = float(below[drawn].sum())
        return float(above[drawn].sum()) / total if total > 0 else None

    return part


def _kept_of(lost: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> Component:
    """Return the share that is left; 0 where more is lost than there was, None where nothing was measured."""
    share = _ratio(lost, whole)

    def part(drawn: Indices) -> float | None:
        found = share(drawn)
        return None if found is None else max(0.0, 1.0 - found)

    return part


def _estimate(sessions: int, statistic: Component) -> dict[str, Any] | None:
    found: Estimate | None = estimate_over(sessions, statistic)
    return None if found is None else found.to_json()
