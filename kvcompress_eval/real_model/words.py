"""Figures in words for a page of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from kvcompress.report.spelling import spell, with_interval
from kvcompress.report.tables import markdown_table

WIDTH = 80
Figure = Mapping[str, Any]


def ranged(figure: Figure, style: str) -> str:
    """Return a figure with its interval, "18.3 (17.9-18.8)", in a style of `kvcompress.report.spelling`."""
    return with_interval(figure, style, "-")


def ratio(figure: Figure) -> str:
    """Return a size ratio with its interval, without a sign."""
    return ranged(figure, "plain ratio")


def nats(figure: Figure) -> str:
    """Return a KL in nats with its interval."""
    return ranged(figure, "short nats")


def share(point: Figure, name: str) -> str:
    """Return a share of a point in per cent, without interval and sign."""
    return spell(point[name]["value"], "per cent")


def verdict(check: Figure, missed: str = "**missed**") -> str:
    """Return met or missed; with a question mark where the interval reaches over to the other."""
    return ("met" if check["met"] else missed) + ("" if check["clear"] else " ?")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns stand below each other; all but the first are aligned right."""
    return markdown_table(head, rows, padded=True)


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


def counted(counts: Mapping[str, int]) -> str:
    """Return counts with what they count."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())
