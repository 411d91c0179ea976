"""Figures of tasks in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import with_interval
from kvcompress_eval.real_model.words import ratio

Figure = Mapping[str, Any]


def percent(figure: Figure) -> str:
    """Return a share in per cent with its interval, "88.3 (80.0-95.0)"."""
    return with_interval(figure, "points", "-")


def difference(figure: Figure) -> str:
    """Return a difference of shares in points with its interval, "-1.7 (-5.0..+1.7)"."""
    return with_interval(figure, "signed points", "..")


def size_ratio(one: Figure) -> str:
    """Return a candidate's size ratio with its interval; nothing for the exact cache."""
    return ratio(one["size_ratio"]) if "size_ratio" in one else ""


def ladder_in_words(task: Figure) -> str:
    """Return the sizes that were tried and what the exact cache answered there."""
    if not task["tried"]:
        return "The size was given."
    tried = ", ".join(f"{one['size']}: {one['accuracy']:.0%}" for one in task["tried"])
    return f"Exact cache by {task['unit']}, on other examples: {tried}."


def told_of(task: Figure) -> str:
    """Return what a task is, at which size it was measured, and how that was found."""
    size = f"{task['size']} {task['unit']}, " if task["unit"] != "tokens" else ""
    asked = f"{task['answers']} answers of {task['examples']} context{'s' if task['examples'] > 1 else ''}"
    return f"{task['about']} Here: {size}{task['tokens']:,.0f} tokens; {asked}. {ladder_in_words(task)}"
