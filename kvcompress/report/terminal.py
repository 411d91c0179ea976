"""Tables for the terminal; in a pipe nothing is cut or wrapped."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TextIO

from kvcompress.errors import shown

GAP = "  "
MOST_WRAPPED_ROWS = 500
"""Longer tables are printed a row a line in a terminal too: wrapping takes a millisecond a row."""


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[int] = (),
    title: str = "",
    file: TextIO | None = None,
) -> None:
    """Print a table. A terminal wraps long cells; anything else gets each row on one line, however long it is.

    Args:
        head: Names of the columns; without any the table has no head.
        rows: Cells of each row, one for each column. What does not print is spelled out, and nothing in them is markup.
        numbers: Indices of the columns aligned to the right.
        title: Above the table; "" for none.
        file: Where to print, standard output if not given.
    """
    file = sys.stdout if file is None else file
    listed = [[shown(cell) for cell in row] for row in rows]
    if title:
        file.write(f"{title}\n\n")
    if file.isatty() and len(listed) <= MOST_WRAPPED_ROWS:
        _print_wrapped(head, listed, numbers, file)
        return
    for line in _lines([list(head), *listed] if head else listed, numbers):
        file.write(f"{line}\n")


def _print_wrapped(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int], file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), show_header=bool(head))
    for index in range(len(head) or max(map(len, rows), default=0)):
        name = Text(head[index] if head else "")
        table.add_column(name, justify="right" if index in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=file, highlight=False).print(table)


def _lines(rows: Sequence[Sequence[str]], numbers: Collection[int]) -> Iterator[str]:
    """Yield each row on a line, its columns below each other; wide characters take two cells."""
    from rich.cells import cell_len

    if not rows:
        return
    widths = [max(cell_len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        pairs = enumerate(zip(row, spaces, strict=True))
        yield GAP.join(space + cell if index in numbers else cell + space for index, (cell, space) in pairs).rstrip()
