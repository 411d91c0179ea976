"""Figures in words for a page of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
Figure = Mapping[str, Any]


def ratio(figure: Figure) -> str:
    """Return a size ratio with its interval, "18.3 (17.9-18.8)"."""
    return _with_interval(figure, lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}")


def nats(figure: Figure) -> str:
    """Return a KL with its interval."""
    return _with_interval(figure, plain_nats)


def plain_nats(value: float) -> str:
    """Return nats at a precision that tells tiers apart."""
    return f"{value:.1e}" if 0 < value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def share(figure: Figure) -> str:
    """Return a share in per cent with its interval."""
    return _with_interval(figure, lambda value: f"{100 * value:.2f}" if value < 0.1 else f"{100 * value:.1f}")


def _with_interval(figure: Figure, spelled: Any) -> str:
    if figure["low"] is None:
        return str(spelled(figure["value"]))
    return f"{spelled(figure['value'])} ({spelled(figure['low'])}-{spelled(figure['high'])})"


def verdict(check: Figure, missed: str = "**missed**") -> str:
    """Return met or missed; with a question mark where the interval reaches over to the other."""
    return ("met" if check["met"] else missed) + ("" if check["clear"] else " ?")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns stand below each other; all but the first are aligned right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def paragraph(text: str) -> str:
    """Return text wrapped at the page's width."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def command(line: str) -> str:
    """Return a command as a block that continues over lines."""
    lines = textwrap.wrap(line, WIDTH - 4, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "```\n" + " \\\n".join(lines) + "\n```"


def named(point: Figure) -> str:
    """Return a point's codec and quality."""
    return f"{point['codec']} {point['quality']}"


def plain(point: Figure, name: str) -> str:
    """Return a share of a point in per cent, without its interval."""
    return share({**point[name], "low": None})


def counted(counts: Mapping[str, int]) -> str:
    """Return counts with what they count."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def threads_in_words(count: int) -> str:
    """Return how many threads."""
    return "one thread" if count == 1 else f"{count} threads"
