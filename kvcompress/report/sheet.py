"""Figures as SVG: one pair of axes in the reports' style, without fonts and without references to a network."""

from __future__ import annotations

import html
import re
import warnings
from io import StringIO
from typing import Any

from kvcompress.report.palette import CARD, INK, LINE, MUTED, coloured

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvcompress",  # the same report gives the same bytes
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "hatch.color": CARD,
    "hatch.linewidth": 1.5,
}
WIDE_INCHES, HALF_INCHES = 10.0, 4.9  # at 96 pixels an inch as wide as the page: text keeps its size


class Sheet:
    """A figure with one pair of axes, drawn in our style whatever the user's own settings are."""

    def __init__(self, name: str, width_inches: float, height_inches: float) -> None:
        """Note the size; nothing is imported before the sheet is opened."""
        self._name, self._size = name, (width_inches, height_inches)
        self._text = StringIO()

    def __enter__(self) -> Sheet:
        """Open the sheet: matplotlib is imported here, not at start-up."""
        from matplotlib import style
        from matplotlib.figure import Figure

        self._style = style.context(["default", STYLE])
        self._style.__enter__()
        self._figure = Figure(figsize=self._size, layout="constrained")
        self.axes: Any = self._figure.add_subplot()
        return self

    def __exit__(self, *error: object) -> None:
        """Render the figure, unless drawing failed, and give the settings back."""
        try:
            if error[0] is None:
                nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
                with warnings.catch_warnings():
                    # The reader's browser draws the text; that our measuring font lacks a character is no matter.
                    warnings.filterwarnings("ignore", message="Glyph .* missing")
                    self._figure.savefig(self._text, format="svg", transparent=True, metadata=nothing)
        finally:
            self._style.__exit__(None, None, None)

    def legend(self, columns: int) -> None:
        """Put the legend of all labelled lines below the axes."""
        handles, labels = self.axes.get_legend_handles_labels()
        if handles:
            placed: dict[str, Any] = {
                "loc": "outside lower center",
                "frameon": False,
                "ncols": min(columns, len(handles)),
            }
            self._figure.legend(handles, labels, handlelength=2.8, columnspacing=1.6, **placed)

    def svg(self, description: str, *, alone: bool = False) -> str:
        """Return the finished SVG element.

        Args:
            description: Its alternative text.
            alone: With colours of its own, for a file; else the page's CSS variables colour it.
        """
        text = self._text.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = text.replace("xlink:href=", "href=")
        text = coloured(text, alone=alone)
        # Several figures share one page, so each takes its name into its ids.
        text = re.sub(r'(?<=\sid=")|(?<=href="#)|(?<=url\(#)', f"{self._name}-", text)
        label = f'<svg role="img" aria-label="{html.escape(description)}"'
        opening = r'<svg( xmlns:xlink="[^"]*")?( width="[^"]*")?( height="[^"]*")?'
        return re.sub(opening, lambda _: label, text, count=1)


def shorten(name: str, most_characters: int) -> str:
    """Return a name that leaves room for what it names."""
    return name if len(name) <= most_characters else f"{name[: most_characters - 1]}…"
