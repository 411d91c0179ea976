"""`python -m eval readme`: the tables of the README from the reports that this repository keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eval.readme import real_model, tasks
from eval.readme.between import write_between
from kvcompress.errors import InputError
from kvcompress_eval.suite.publish import read_result
from kvcompress_eval.suite.report import readme_table

REPORTS = Path("eval/reports")
Result = Mapping[str, Any]


def _plain(directory: Path) -> Result:
    try:
        found: Result = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "Measure it first, see the Makefile"
        raise InputError(f"no report can be read ({error})", remedy, path=directory) from error
    return found


TABLES: Mapping[str, tuple[str, Callable[[Path], Result], Callable[[Any], str]]] = MappingProxyType(
    {
        "results": ("reference-lm", read_result, readme_table),
        "real-model": ("smollm2", _plain, real_model.readme_table),
        "tasks": ("smollm2-tasks", _plain, tasks.readme_table),
    }
)
"""Marks of the README -> directory of the report, what reads it, what makes the table."""


def write_tables(names: Sequence[str], page: Path, reports: Path = REPORTS) -> None:
    """Replace tables of the README.

    Args:
        names: Which of `TABLES`.
        page: The README.
        reports: Where the reports lie.

    Raises:
        InputError: There is no such table, no report, or no place for it on the page.
    """
    for name in names:
        if name not in TABLES:
            raise InputError(f"no table is called {name!r}", f"Known are {', '.join(TABLES)}")
        directory, read, table = TABLES[name]
        write_between(page, name, table(read(reports / directory)))
