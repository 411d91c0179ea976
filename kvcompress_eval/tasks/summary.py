"""Rows to figures: accuracy of each candidate on each task, and its difference to the exact cache.

Examples are resampled, never answers: the answers of one context are not independent. Candidate and exact cache are
resampled together, for they answer the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvcompress_eval.real_model.interval import PERCENTILES, Interval, over_sessions, ratio_of
from kvcompress_eval.real_model.targets import check
from kvcompress_eval.suite.bootstrap import BOOTSTRAP_SEED, RESAMPLES
from kvcompress_eval.suite.rows import Row
from kvcompress_eval.tasks.candidates import EXACT, OURS, Candidate
from kvcompress_eval.tasks.ladder import LEAST_ACCURACY, Ladder
from kvcompress_eval.tasks.protocol import Task

Floats = npt.NDArray[np.float64]
ByExample = Sequence[Mapping[str, Row]]

MOST_LOST = {"transparent": 0.01, "high": 0.03}
"""How much less than the exact cache a quality may answer, on every task."""

STRETCHES = 5
"""Of the context, for accuracy by place."""


def summarise(
    tasks: Sequence[Task],
    ladders: Mapping[str, Ladder],
    candidates: Sequence[Candidate],
    rows: Mapping[str, ByExample],
) -> dict[str, Any]:
    """Return figures of every task, means over tasks, and targets.

    Args:
        tasks: In the order of the report.
        ladders: What was found of each task's sizes.
        candidates: In the order of the report.
        rows: Task -> example by example, the row of each candidate by name; tasks that were not measured are absent.
    """
    found = [_task(task, ladders[task.name], candidates, rows.get(task.name, ())) for task in tasks]
    return {
        "candidates": [{"name": one.name, "kind": one.kind, "quality": one.quality} for one in candidates],
        "tasks": found,
        "means": _means(candidates, [rows[task.name] for task in tasks if task.name in rows]),
        "checks": _checks(found),
    }


def _task(task: Task, ladder: Ladder, candidates: Sequence[Candidate], rows: ByExample) -> dict[str, Any]:
    facts = {name: getattr(task, name) for name in ("name", "title", "short", "about", "unit")} | ladder.to_json()
    if not rows:
        return {**facts, "examples": 0, "candidates": [], "failed": {}}
    failed = {one.name: reason for one in candidates if (reason := _failure(rows, one.name)) is not None}
    exact = accuracy(rows, EXACT)
    return {
        **facts,
        "examples": len(rows),
        "answers": sum(len(row[EXACT]["scores"]) for row in rows),
        "tokens": float(np.mean([row[EXACT]["tokens"] for row in rows])),
        "enough": exact.value >= LEAST_ACCURACY,
        "candidates": [_figures(rows, one) for one in candidates if one.name not in failed],
        "failed": failed,
    }


def _failure(rows: ByExample, name: str) -> str | None:
    """Return why a candidate could not store one of the contexts."""
    return next((row[name]["failed"] for row in rows if "failed" in row[name]), None)


def _figures(rows: ByExample, candidate: Candidate) -> dict[str, Any]:
    mine = [row[candidate.name] for row in rows]
    found = {
        "name": candidate.name,
        "kind": candidate.kind,
        "quality": candidate.quality,
        "accuracy": accuracy(rows, candidate.name).to_json(),
        "difference": difference(rows, candidate.name).to_json(),
        "by_place": _by_place(mine),
    }
    if candidate.kind == EXACT:
        return found
    return {
        **found,
        "size_ratio": ratio_of([row["raw_bytes"] for row in mine], [row["file_bytes"] for row in mine]).to_json(),
        "file_bytes": float(np.mean([row["file_bytes"] for row in mine])),
        "stored": dict(Counter(row["stored"] for row in mine)),
        "unlike": sum(row["unlike"] for row in mine),
        **{f"{name}_seconds": float(np.median([row[f"{name}_seconds"] for row in mine])) for name in _CLOCKS},
    }


_CLOCKS = ("encode", "decode", "answer")


def right_and_asked(rows: ByExample, name: str) -> Floats:
    """Return [examples, 2]: how many answers of a candidate are right, and how many were asked for."""
    return np.array([[sum(row[name]["scores"]), len(row[name]["scores"])] for row in rows], np.float64)


def accuracy(rows: ByExample, name: str) -> Interval:
    """Return the share of right answers of a candidate."""
    counts = right_and_asked(rows, name)
    return over_sessions(len(counts), lambda drawn: _share(counts[drawn]))


def difference(rows: ByExample, name: str) -> Interval:
    """Return accuracy less that of the exact cache, resampled together."""
    counts, exact = right_and_asked(rows, name), right_and_asked(rows, EXACT)
    return over_sessions(len(counts), lambda drawn: _share(counts[drawn]) - _share(exact[drawn]))


def _share(counts: Floats) -> float:
    right, asked = counts.sum(0)
    return float(right / asked)


def _by_place(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return accuracy by where in the context the answer stands, in stretches of equal length."""
    pairs = [pair for row in rows if row["places"] for pair in zip(row["places"], row["scores"], strict=True)]
    found = []
    for number in range(STRETCHES):
        inside = [score for place, score in pairs if min(int(place * STRETCHES), STRETCHES - 1) == number]
        if inside:
            share = (number / STRETCHES, (number + 1) / STRETCHES)
            found.append({"place": share, "answers": len(inside), "accuracy": float(np.mean(inside))})
    return found


def _means(candidates: Sequence[Candidate], groups: Sequence[ByExample]) -> list[dict[str, Any]]:
    """Return accuracy and difference of each candidate as means over the tasks that it could store."""
    found = []
    for one in candidates:
        held = [rows for rows in groups if _failure(rows, one.name) is None]
        if held:
            counts = [(right_and_asked(rows, one.name), right_and_asked(rows, EXACT)) for rows in held]
            found.append(
                {
                    "name": one.name,
                    "tasks": len(held),
                    "accuracy": float(np.mean([_share(mine) for mine, _ in counts])),
                    "difference": _mean_difference(counts).to_json(),
                }
            )
    return found


def _mean_difference(counts: Sequence[tuple[Floats, Floats]]) -> Interval:
    """Return the mean over tasks of the difference; the examples of each task are resampled on their own."""
    value, replicates = float(np.mean([_share(mine) - _share(exact) for mine, exact in counts])), []
    if any(len(mine) < 2 for mine, _ in counts):
        return Interval(value)
    for number, (mine, exact) in enumerate(counts):
        chance = np.random.default_rng([BOOTSTRAP_SEED, number])
        drawn = chance.integers(0, len(mine), (RESAMPLES, len(mine)))
        shares = [part[drawn].sum(1) for part in (mine, exact)]
        replicates.append(shares[0][:, 0] / shares[0][:, 1] - shares[1][:, 0] / shares[1][:, 1])
    low, high = np.percentile(np.mean(replicates, 0), PERCENTILES)
    return Interval(value, float(low), float(high))


def _checks(tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each task and quality how much less it answers than the exact cache, against what it may."""
    return [
        check(one["difference"], -MOST_LOST[one["quality"]], at_least=True, task=task["name"], quality=one["quality"])
        for task in tasks
        for one in task["candidates"]
        if one["kind"] == OURS and one["quality"] in MOST_LOST and task["enough"]
    ]
