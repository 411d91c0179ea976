"""The report as one HTML page that needs nothing else: styles and figures inside, scripts and network forbidden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvcompress_eval.tasks.picture import draw_accuracy, draw_places, placed
from kvcompress_eval.tasks.spelling import difference, ladder_in_words, percent, points, size_ratio, told_of

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of the page.

    Attributes:
        heading: Above it; "" for none.
        note: Sentences between heading and table.
        head: Names of columns.
        rows: Each as (kind of the candidate, cells).
    """

    heading: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def render_html(result: Result) -> str:
    """Return the whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from kvcompress_eval.tasks.page import introduction, made_by

    room = Environment(
        loader=PackageLoader("kvcompress_eval", "tasks"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = []
    if any(task["candidates"] for task in result["tasks"]):
        figures.append(("Accuracy by task", ACCURACY_CAPTION, Markup(draw_accuracy(result))))
    if placed(result) is not None:
        figures.append(("Key-value retrieval by place", PLACES_CAPTION, Markup(draw_places(result))))
    return room.get_template("page.html.j2").render(
        title=f"Tasks: {result['model']['name']}",
        means=result["means"],
        points=points,
        difference=difference,
        introduction=introduction(result),
        warnings=warnings(result),
        figures=figures,
        checks=[_check(result, one) for one in result["checks"]],
        sheets=[overview(result), *(_task(task) for task in result["tasks"] if task["candidates"])],
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


def overview(result: Result) -> Sheet:
    """Return accuracy of every candidate on every task."""
    measured = [task for task in result["tasks"] if task["candidates"]]
    rows = []
    for one in result["candidates"]:
        held = [{found["name"]: found for found in task["candidates"]}.get(one["name"]) for task in measured]
        cells = tuple("-" if found is None else points(found["accuracy"]["value"]) for found in held)
        rows.append((str(one["kind"]), (one["name"], *cells)))
    return Sheet("All tasks", "% right.", ("", *(task["title"] for task in measured)), tuple(rows))


def _task(task: Result) -> Sheet:
    failed = "".join(f" {name} could not be measured: {why}" for name, why in task["failed"].items())
    rows = tuple((str(one["kind"]), _cells(one)) for one in task["candidates"])
    return Sheet(_heading(task), told_of(task) + failed, ("", "% right", "to exact", "size ratio", "stored as"), rows)


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
