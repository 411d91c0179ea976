"""Render a report, a plain dictionary, as JSON, Markdown or one self-contained HTML page.

Every part of the dictionary may be missing; what was not measured is left out. The text of a session is hostile: it is
escaped for where it stands, and the page forbids scripts and network in its own policy as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcompress.report.facts import cards, headline, measures, part, particulars, plain, tier_label, visible
from kvcompress.report.facts import first_difference as _first_difference
from kvcompress.report.files import write_files
from kvcompress.report.tables import fenced, inline, markdown_table
from kvcompress.report.template import render_template

DEFAULT_TITLE = "KV cache report"


def render_json(report: Mapping[str, Any]) -> str:
    """Return the report as JSON; what JSON cannot say, such as infinity, is null."""
    return json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: headline, figures, measures, sections, texts."""
    report = visible(plain(report))
    lines = [f"# {inline(report.get('title') or DEFAULT_TITLE)}", ""]
    if headline(report):
        lines += [f"**{' · '.join(headline(report))}**", ""]
    if report.get("verdict"):
        lines += [inline(report["verdict"]), ""]
    if report.get("command"):
        lines += [fenced(str(report["command"])), ""]
    named = [(card.name, card.figure, "; ".join(card.notes)) for card in cards(report)]
    lines += _table(("", "", ""), named)
    rows = [(row.measure, row.value, *(row.bounds or ("", "", "")), row.meaning) for row in measures(report)]
    lines += _table(("measure", "value", "transparent", "high", "usable", "meaning"), rows)
    sections = part(part(report, "file"), "sections")
    lines += _table(("section", "bytes"), sorted(sections.items(), key=lambda item: -item[1]))
    lines += _texts(report)
    lines += _table(("run", ""), particulars(report))
    return "\n".join(lines).rstrip() + "\n"


def render_html(report: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that needs nothing else: styles and figures inside, scripts forbidden."""
    from markupsafe import Markup

    from kvcompress.report import page

    report = visible(plain(report))
    texts, difference = page.resumed(report)
    return render_template(
        "kvcompress",
        "report",
        title=report.get("title") or DEFAULT_TITLE,
        command=report.get("command"),
        verdict=report.get("verdict"),
        headline=headline(report),
        tier=tier_label(report),
        cards=cards(report),
        measures=measures(report),
        sections=page.section_rows(report),
        figures=[(figure, Markup(figure.svg)) for figure in page.figures(report)],
        strip=page.strip(report),
        tiers=page.tier_strip(report),
        texts=texts,
        difference=difference,
        particulars=particulars(report),
    )


def write_report(report: Mapping[str, Any], directory: str | os.PathLike[str], *, force: bool = True) -> list[Path]:
    """Write report.json, report.md and report.html; each appears whole or not at all.

    Args:
        report: The report.
        directory: Where to write; it is made if there is none.
        force: Whether an earlier report may be replaced.

    Returns:
        The three paths.

    Raises:
        InputError: The directory or a file cannot be written, or exists without `force`.
    """
    texts = {"json": render_json(report), "md": render_markdown(report), "html": render_html(report)}
    return write_files(directory, {f"report.{ending}": text for ending, text in texts.items()}, force=force)


def _texts(report: Mapping[str, Any]) -> list[str]:
    resumed, uninterrupted = report.get("resumed_text"), report.get("uninterrupted_text")
    if resumed is None or uninterrupted is None:
        return []
    at = _first_difference(str(resumed), str(uninterrupted))
    said = "The two texts are identical." if at is None else f"They differ after {at} characters."
    lines = ["## Resumed", "", said, "", "Uninterrupted:", "", fenced(str(uninterrupted)), ""]
    return [*lines, "Resumed from the file:", "", fenced(str(resumed)), ""]


def _table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    """Return a table with a line behind it; nothing without rows."""
    cells = [[inline(cell) for cell in row] for row in rows]
    return [markdown_table(head, cells, numbers=()), ""] if rows else []
