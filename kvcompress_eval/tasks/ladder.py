"""The size of each task: the largest at which the exact cache answers at least 70 %, on examples of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvcompress.errors import InputError
from kvcompress_eval.suite.rows import Row
from kvcompress_eval.tasks.protocol import Task

LEAST_ACCURACY = 0.7


@dataclass(frozen=True, slots=True)
class Ladder:
    """What was found of a task.

    Attributes:
        size: To measure at; None where the exact cache answers too little at every size.
        tried: Size and accuracy of the exact cache there, in the order tried; empty where the user gave the size.
    """

    size: int | None
    tried: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return {"size": self.size, "tried": [{"size": size, "accuracy": found} for size, found in self.tried]}


def climb(sizes: Sequence[int], accuracy: Callable[[int], float]) -> Ladder:
    """Try sizes from the hardest down and stop at the first at which the exact cache answers enough."""
    tried = list[tuple[int, float]]()
    for size in sorted(sizes, reverse=True):
        tried.append((size, accuracy(size)))
        if tried[-1][1] >= LEAST_ACCURACY:
            return Ladder(size, tuple(tried))
    return Ladder(None, tuple(tried))


def accuracy_of(rows: Sequence[Row]) -> float:
    """Return the share of right answers."""
    scores: list[float] = [score for row in rows for score in row["scores"]]
    return sum(scores) / len(scores)


def examples_for(task: Task, answers: int, least: int) -> int:
    """Return how many examples give so many answers, and at least so many examples."""
    return max(least, math.ceil(answers / task.answers))


def named_sizes(words: Sequence[str], tasks: Sequence[Task]) -> dict[str, int]:
    """Return sizes given as TASK=N, several with commas between them.

    Raises:
        InputError: A word is not TASK=N of a task that is measured, or N is not positive.
    """
    found = {}
    known = {task.name for task in tasks}
    for word in (part for words_ in words for part in words_.split(",") if part):
        name, _, number = word.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known or not number.strip().isdigit() or not int(number):
            raise InputError(f"{word!r} is not TASK=N", f"Tasks of this run are {', '.join(sorted(known))}")
        found[name] = int(number)
    return found
