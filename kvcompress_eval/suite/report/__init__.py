"""The report of the fidelity suite: one result as JSON, Markdown and a self-contained HTML page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvcompress.errors import InputError
from kvcompress.format.atomic import atomic_write
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
    # All three are rendered first: a result that cannot be rendered leaves no half of a report behind.
    rendered = {
        "json": json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "md": render_markdown(result),
        "html": render_html(result),
    }
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        what = f"the directory cannot be made: {getattr(error, 'strerror', None) or error}".lower()
        raise InputError(what, "Choose another place", path=ascii(directory)) from error
    paths = []
    for ending, text in rendered.items():
        path = Path(directory) / f"report.{ending}"
        # A token may decode to half a character, which UTF-8 cannot hold; it is spelled out.
        atomic_write(path, [text.encode("utf-8", "backslashreplace")], force=True)
        paths.append(path)
    return paths
