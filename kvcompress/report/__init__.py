"""Reports of one session as JSON, Markdown and HTML; and the tables, figures and pages of all reports."""

from kvcompress.report.render import render_html, render_json, render_markdown, write_report

__all__ = ["render_html", "render_json", "render_markdown", "write_report"]
