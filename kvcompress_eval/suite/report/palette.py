"""How a family looks in every figure: colour, marker, line; and the sheet that knows these colours.

Seven hues and twelve markers tell families apart: ours and the chief baseline have a hue of their own and heavier
lines, the others share six hues, filled for the first six families and hollow for the next; from the thirteenth on a
hue comes with another marker than before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvcompress.report.plots import ACCENT, CARD, INK, Sheet
from kvcompress_eval.suite.report.facts import CHIEF_BASELINE, OURS, Codec

# Stand-ins for the page's --family-1 to --family-7, as in kvcompress.report.plots.
FAMILY_VARIABLES = {f"#0b0c{index:02x}": f"family-{index}" for index in range(1, 8)}
CHIEF_COLOUR, *OTHER_COLOURS = FAMILY_VARIABLES
OTHER_MARKERS = ("s", "^", "P", "X", "v", "p", "<", "h", ">", "d", "8", "*")
TIER_LINES = {"transparent": "-", "high": "--", "usable": ":", None: "-."}
MOST_LABEL_CHARACTERS = 28


@dataclass(frozen=True, slots=True)
class Look:
    """How the points and lines of a family are drawn."""

    colour: str
    marker: str
    fill: str
    width: float
    size: float
    order: int  # what lies above what

    def line(self) -> dict[str, Any]:
        """Return the arguments of a line with markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": self.fill,
            "markeredgecolor": self.colour,
            "markersize": self.size,
            "linewidth": self.width,
            "zorder": self.order,
        }


def looks(families: Sequence[str]) -> dict[str, Look]:
    """Return the look of each family; the same list gives the same looks."""
    found = {}
    others = [family for family in families if family not in (OURS, CHIEF_BASELINE)]
    for index, family in enumerate(others):
        colour = OTHER_COLOURS[index % len(OTHER_COLOURS)]
        hollow = (index // len(OTHER_COLOURS)) % 2 == 1
        marker = OTHER_MARKERS[(index + index // len(OTHER_MARKERS)) % len(OTHER_MARKERS)]
        found[family] = Look(colour, marker, CARD if hollow else colour, 1.0, 6.0, 4)
    found[CHIEF_BASELINE] = Look(CHIEF_COLOUR, "D", CHIEF_COLOUR, 2.0, 6.5, 5)
    found[OURS] = Look(ACCENT, "o", ACCENT, 2.8, 8.0, 6)
    return {family: found[family] for family in families}


def curves(codecs: Sequence[Codec], found: Mapping[str, Look]) -> list[tuple[Codec, dict[str, Any]]]:
    """Return each codec with the arguments of its line: the look of its family, dashed by its tier, with its name.

    A further codec of the same family and tier has hollow markers, those after it thin lines without.
    """
    styled, seen = [], Counter[tuple[str, str | None]]()
    for codec in codecs:
        look, before = found[codec["family"]], seen[codec["family"], codec["tier"]]
        seen[codec["family"], codec["tier"]] += 1
        style = {"linestyle": TIER_LINES[codec["tier"]], "label": shorten(codec["name"]), "markersize": 4.5}
        if before == 1:
            style |= {"markerfacecolor": CARD, "markersize": 5.5}
        elif before > 1:
            style |= {"markersize": 0.0, "linewidth": 0.6 * look.width}
        styled.append((codec, look.line() | style))
    return styled


def yardstick(name: str) -> dict[str, Any]:
    """Return the arguments of the line that the codecs are held against."""
    return {"color": INK, "linewidth": 1.6, "linestyle": (0, (6, 2)), "label": name, "zorder": 7}


def shorten(name: str) -> str:
    """Return a name that leaves room for what it names; one that begins with "_" would be left out of a legend."""
    name = f"\u200b{name}" if name.startswith("_") else name
    return name if len(name) <= MOST_LABEL_CHARACTERS else f"{name[: MOST_LABEL_CHARACTERS - 1]}…"


class SuiteSheet(Sheet):
    """A sheet whose legend stands below the axes, and that knows the families' colours."""

    def __enter__(self) -> SuiteSheet:
        """Open the sheet."""
        super().__enter__()
        return self

    def legend(self, columns: int) -> None:
        """Put the legend of all labelled lines below the axes."""
        handles, labels = self.axes.get_legend_handles_labels()
        if not handles:
            return
        figure = self.axes.figure
        placed = {"loc": "outside lower center", "frameon": False, "ncols": min(columns, len(handles))}
        figure.legend(handles, labels, handlelength=2.8, columnspacing=1.6, **placed)

    def svg(self, description: str) -> str:
        """Return the finished SVG with the families' colours as CSS variables too."""
        text = super().svg(description)
        for colour, variable in FAMILY_VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        return text
