"""Reports of one session: JSON for programs, Markdown for the terminal, one HTML page for people."""

from kvcompress.report.render import render_html, render_json, render_markdown, write_report

__all__ = ["render_html", "render_json", "render_markdown", "write_report"]
