"""The report of the fidelity suite: one result as JSON, Markdown and a self-contained HTML page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvcompress.report.files import write_files
from kvcompress_eval.suite.report.compare import compare
from kvcompress_eval.suite.report.markdown import readme_table, render_markdown
from kvcompress_eval.suite.report.page import render_html
from kvcompress_eval.suite.report.schema import SCHEMA_VERSION, validate

__all__ = [
    "SCHEMA_VERSION",
    "compare",
    "readme_table",
    "render_html",
    "render_markdown",
    "validate",
    "write_suite_report",
]


def write_suite_report(result: dict[str, Any], directory: str | os.PathLike[str]) -> list[Path]:
    """Write report.json, report.md and report.html, each whole or not at all; earlier ones are replaced.

    Args:
        result: What the suite measured; `schema.py` says what it holds. The JSON file holds it as it is.
        directory: Where to write; it is made if there is none.

    Returns:
        The three paths.

    Raises:
        InputError: The result does not follow the schema, or the directory or a file cannot be written.
    """
    validate(result)
    texts = {
        "report.json": json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": render_markdown(result),
        "report.html": render_html(result),
    }
    return write_files(directory, texts)
