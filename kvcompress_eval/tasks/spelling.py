"""Figures of tasks in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress_eval.real_model.words import ratio

Figure = Mapping[str, Any]


def points(value: float) -> str:
    """Return a share in per cent, without its sign."""
    return "100" if value == 1 else f"{100 * value:.1f}"


def percent(figure: Figure) -> str:
    """Return a share in per cent with its interval, "88.3 (80.0-95.0)"."""
    return _with_ends(figure, points(figure["value"]), points)


def difference(figure: Figure) -> str:
    """Return a difference of shares in points with its interval, "-1.7 (-5.0..+1.7)"."""
    if figure["low"] is None:
        return _signed(figure["value"])
    return f"{_signed(figure['value'])} ({_signed(figure['low'])}..{_signed(figure['high'])})"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0.0"


def _with_ends(figure: Figure, value: str, spelled: Any) -> str:
    return value if figure["low"] is None else f"{value} ({spelled(figure['low'])}-{spelled(figure['high'])})"


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
