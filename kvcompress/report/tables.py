"""Tables of a report, and their Markdown; escaping and fenced blocks."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column; numbers stand to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One row; its family decides how the page sets it off."""

    cells: tuple[str, ...]
    family: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of plain text. `folded`: a page shows it only on request, since a figure shows the same."""

    heading: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    folded: bool = False

    def markdown(self) -> str:
        """Return the table as Markdown, without heading and note; its texts are escaped."""
        numbers = [index for index, column in enumerate(self.columns) if column.number]
        head = [inline(column.name) for column in self.columns]
        return markdown_table(head, [[inline(cell) for cell in row.cells] for row in self.rows], numbers=numbers)


def markdown_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Collection[int] | None = None,
    padded: bool = False,
) -> str:
    """Return a Markdown table, without a line end behind its last line.

    Args:
        head: Names of the columns, as Markdown; text from elsewhere goes through `inline` first.
        rows: Cells of each row, as many as there are columns.
        numbers: Indices of the columns aligned to the right; all but the first if not given.
        padded: Fill the cells with spaces, so that columns stand below each other in the source as well.
    """
    right = frozenset(range(1, len(head)) if numbers is None else numbers)
    if not padded:
        rule = ["---:" if index in right else "---" for index in range(len(head))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    lines = [
        [cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in (head, *rows))
    ]
    ends = ["-" * (width + 1) + (":" if index in right else "-") for index, width in enumerate(widths)]
    first, *others = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([first, f"|{'|'.join(ends)}|", *others])


def inline(text: object) -> str:
    """Return text that stays on its line and means nothing to Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def fenced(text: str) -> str:
    """Return text in a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *re.split(r"\r\n|\r|\n", text), fence])
