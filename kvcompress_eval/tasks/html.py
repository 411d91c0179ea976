"""The report as one HTML page that needs nothing else: styles and figures inside, scripts and network forbidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import spell
from kvcompress.report.tables import Column, Row, Table
from kvcompress.report.template import render_template
from kvcompress_eval.tasks.picture import draw_accuracy, draw_places, placed
from kvcompress_eval.tasks.spelling import difference, ladder_in_words, percent, size_ratio, told_of

Result = Mapping[str, Any]


def render_html(result: Result) -> str:
    """Return the whole page."""
    from markupsafe import Markup

    from kvcompress_eval.tasks.page import introduction, made_by

    figures = []
    if any(task["candidates"] for task in result["tasks"]):
        figures.append(("Accuracy by task", ACCURACY_CAPTION, Markup(draw_accuracy(result))))
    if placed(result) is not None:
        figures.append(("Key-value retrieval by place", PLACES_CAPTION, Markup(draw_places(result))))
    return render_template(
        "kvcompress_eval",
        "tasks",
        title=f"Tasks: {result['model']['name']}",
        means=result["means"],
        spell=spell,
        difference=difference,
        introduction=introduction(result),
        warnings=warnings(result),
        figures=figures,
        checks=[_check(result, one) for one in result["checks"]],
        tables=[overview(result), *(_task(task) for task in result["tasks"] if task["candidates"])],
        command=result["command"],
        made_by=made_by(result),
    )


ACCURACY_CAPTION = (
    "Right is better. Colour says the quality, the marker what stores the context: round ours, hollow KVTC at the same "
    "KL, square a plan, pointed the newest tokens only, a bar the exact cache. Lines are 95 % intervals."
)
PLACES_CAPTION = "Where the newest tokens alone are kept, answers before them are gone: the task needs the middle."


def warnings(result: Result) -> list[str]:
    """Return what must be said of tasks that the exact cache is not up to."""
    found = []
    for task in result["tasks"]:
        if not task["candidates"]:
            found.append(f"{_heading(task)} was not measured. {ladder_in_words(task)}")
        elif not task["enough"]:
            found.append(f"{_heading(task)}: the exact cache answers too little of it where it was measured.")
    return found


def overview(result: Result) -> Table:
    """Return accuracy of every candidate on every task."""
    measured = [task for task in result["tasks"] if task["candidates"]]
    rows = []
    for one in result["candidates"]:
        held = [{found["name"]: found for found in task["candidates"]}.get(one["name"]) for task in measured]
        cells = tuple("-" if found is None else spell(found["accuracy"]["value"], "points") for found in held)
        rows.append(Row((one["name"], *cells), str(one["kind"])))
    return Table("All tasks", "% right.", _columns("", *(task["title"] for task in measured)), tuple(rows))


def _task(task: Result) -> Table:
    failed = "".join(f" {name} could not be measured: {why}" for name, why in task["failed"].items())
    rows = tuple(Row(_cells(one), str(one["kind"])) for one in task["candidates"])
    columns = _columns("", "% right", "to exact", "size ratio", "stored as")
    return Table(_heading(task), told_of(task) + failed, columns, rows)


def _columns(first: str, *others: str) -> tuple[Column, ...]:
    return (Column(first, number=False), *map(Column, others))


def _heading(task: Result) -> str:
    return f"{task['title'][0].upper()}{task['title'][1:]}"


def _cells(one: Result) -> tuple[str, ...]:
    if one["kind"] == "exact":
        return (one["name"], percent(one["accuracy"]), "", "", "")
    stored = ", ".join(f"{count} {name}" for name, count in one["stored"].items())
    return (one["name"], percent(one["accuracy"]), difference(one["difference"]), size_ratio(one), stored)


def _check(result: Result, one: Result) -> tuple[str, str, str, str]:
    """Return a target as class, what it is about, what was measured, and the verdict."""
    titles: Mapping[str, str] = {task["name"]: task["title"] for task in result["tasks"]}
    said = ("met" if one["met"] else "missed") + ("" if one["clear"] else " ?")
    about = f"{titles[one['task']]}, {one['quality']}: at least {100 * one['wanted']:+.0f} points"
    return ("met" if one["met"] else "missed", about, difference(one), said)
