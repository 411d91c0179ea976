"""Two pictures: accuracy of every candidate on every task, and accuracy by place in the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcompress.report.palette import ACCENT, CARD, INK, MUTED, TIER_COLOURS
from kvcompress.report.sheet import WIDE_INCHES, Sheet
from kvcompress_eval.tasks.candidates import EVICTION, EXACT, KVTC, OURS, PLAN

Result = Mapping[str, Any]
Look = dict[str, Any]
MARKERS = {EXACT: "|", OURS: "o", KVTC: "D", PLAN: "s", EVICTION: "v"}
BY_PLACE = "key_value"
APART = 0.78
"""Share of a task's row that its candidates take up."""


def draw_accuracy(result: Result, *, alone: bool = False) -> str:
    """Return each candidate's accuracy with its interval, task by task.

    Args:
        result: With at least one task that was measured.
        alone: With colours of its own, for a file; else the page colours it.
    """
    tasks = [task for task in result["tasks"] if task["candidates"]]
    candidates = result["candidates"]
    height = 1.3 + len(tasks) * (0.24 + 0.13 * len(candidates))
    with Sheet("accuracy", WIDE_INCHES, height) as sheet:
        for number, one in enumerate(candidates):
            shift = APART * (number / max(1, len(candidates) - 1) - 0.5)
            _row_of_points(sheet.axes, tasks, one, shift, _look(candidates, number))
        _task_rows(sheet.axes, tasks)
        sheet.legend(4)
    return sheet.svg(_told(tasks), alone=alone)


def _row_of_points(axes: Any, tasks: Sequence[Result], candidate: Result, shift: float, look: Look) -> None:
    """Draw one candidate's points, a task each."""
    held = [
        (place + shift, one["accuracy"])
        for place, task in enumerate(tasks)
        for one in task["candidates"]
        if one["name"] == candidate["name"]
    ]
    if not held:
        return
    ends = [(found["low"], found["high"]) if found["low"] is not None else (found["value"],) * 2 for _, found in held]
    places = [place for place, _ in held]
    axes.hlines(
        places, [100 * low for low, _ in ends], [100 * high for _, high in ends], color=look["color"], linewidth=1.2
    )
    axes.plot([100 * found["value"] for _, found in held], places, linestyle="none", **look)


def _task_rows(axes: Any, tasks: Sequence[Result]) -> None:
    axes.set_yticks(range(len(tasks)), [_label(task) for task in tasks])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    for place in range(1, len(tasks)):
        axes.axhline(place - 0.5, color=MUTED, linewidth=0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(-2, 102)
    axes.set_xlabel("answers that are right, %")


def _label(task: Result) -> str:
    counted = f"{task['size']} {task['unit']}, " if task["unit"] != "tokens" else ""
    return f"{task['title']}\n{counted}{task['tokens']:,.0f} tokens"


def placed(result: Result) -> Result | None:
    """Return the task that is drawn by place, None where it was not measured."""
    return next((task for task in result["tasks"] if task["name"] == BY_PLACE and task["candidates"]), None)


def draw_places(result: Result, *, alone: bool = False) -> str:
    """Return accuracy by where in the context the answer stands.

    Args:
        result: With the task that is drawn by place.
        alone: As in `draw_accuracy`.
    """
    task = placed(result)
    assert task is not None
    with Sheet("places", WIDE_INCHES, 3.9) as sheet:
        axes = sheet.axes
        for number, named in enumerate(result["candidates"]):
            one = next((found for found in task["candidates"] if found["name"] == named["name"]), None)
            if one is not None:
                middles = [50 * (low + high) for low, high in (part["place"] for part in one["by_place"])]
                values = [100 * part["accuracy"] for part in one["by_place"]]
                look = _look(result["candidates"], number)
                style = {KVTC: "--", PLAN: ":", EVICTION: ":"}.get(one["kind"], "-")
                axes.plot(middles, values, linestyle=style, linewidth=1.6, **(look | _spare_bar(one)))
        axes.set_xlim(0, 100)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("where in the context the answer stands, % of its length")
        axes.set_ylabel("answers that are right, %")
        sheet.legend(4)
    return sheet.svg(f"Accuracy of {task['title']} by place in the context", alone=alone)


def _spare_bar(one: Result) -> Look:
    """Return another marker for the exact cache, whose bar would be lost on a line."""
    return {"marker": "x"} if one["kind"] == EXACT else {}


def _look(candidates: Sequence[Result], number: int) -> Look:
    """Return how a candidate is drawn: its colour says its quality, its marker what it is."""
    one = candidates[number]
    colour = {EXACT: INK, PLAN: ACCENT, EVICTION: MUTED}.get(one["kind"]) or TIER_COLOURS.get(one["quality"], ACCENT)
    kin = [other["name"] for other in candidates if other["kind"] == one["kind"]]
    hollow = one["kind"] == KVTC or (one["kind"] in (PLAN, EVICTION) and kin.index(one["name"]) > 0)
    size = {EXACT: 11, KVTC: 5.5}.get(one["kind"], 7)
    return {
        "color": colour,
        "marker": MARKERS[one["kind"]],
        "markersize": size,
        "markerfacecolor": CARD if hollow else colour,
        "markeredgewidth": 2.2 if one["kind"] == EXACT else 1.3,
        "label": one["name"],
    }


def _told(tasks: Sequence[Result]) -> str:
    told = [
        f"{task['title']}: " + ", ".join(f"{one['name']} {one['accuracy']['value']:.0%}" for one in task["candidates"])
        for task in tasks
    ]
    return f"Share of right answers; {'; '.join(told)}"
