"""The report in a few rows, for the README: accuracy on each task, exact and stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import spell
from kvcompress_eval.real_model.words import table
from kvcompress_eval.tasks.candidates import EXACT

Result = Mapping[str, Any]


def readme_table(result: Result) -> str:
    """Return a row a task, a column a candidate, and a line on how they were measured."""
    names = [one["name"] for one in result["candidates"]]
    tasks = [task for task in result["tasks"] if task["candidates"] and task["enough"]]
    rows = [(f"{task['title'].lower()}, {task['tokens']:,.0f} tokens", *_cells(task, names)) for task in tasks]
    answers = sorted({task["answers"] for task in tasks})
    spread = f"{answers[0]} to {answers[-1]}" if len(answers) > 1 else f"{answers[0]}"
    last = (
        f"{result['model']['name']}: right answers, {spread} a task, after a true decode and resume, on tasks of which"
        " the exact cache gives at least seven in ten. Intervals and differences are in the report. Made by"
        " `make tasks-smollm2`."
    )
    return table(("task", *names), rows) + "\n\n" + last + "\n"


def _cells(task: Result, names: list[str]) -> list[str]:
    found = {one["name"]: one["accuracy"]["value"] for one in task["candidates"]}
    assert EXACT in found
    return [f"{spell(found[name], 'points')} %" if name in found else "failed" for name in names]
