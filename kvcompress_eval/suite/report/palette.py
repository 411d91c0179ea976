"""How a family looks in every figure: colour, marker, line.

Seven hues and twelve markers tell families apart: ours and the chief baseline have a hue of their own and heavier
lines, the others share six hues, filled for the first six families and hollow for the next; from the thirteenth on a
hue comes with another marker than before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvcompress.report.palette import ACCENT, CARD, FAMILY_COLOURS, INK
from kvcompress.report.sheet import shorten
from kvcompress_eval.suite.report.facts import CHIEF_BASELINE, OURS, Codec

CHIEF_COLOUR, *OTHER_COLOURS = FAMILY_COLOURS
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
        style = {"linestyle": TIER_LINES[codec["tier"]], "label": label_of(codec["name"]), "markersize": 4.5}
        if before == 1:
            style |= {"markerfacecolor": CARD, "markersize": 5.5}
        elif before > 1:
            style |= {"markersize": 0.0, "linewidth": 0.6 * look.width}
        styled.append((codec, look.line() | style))
    return styled


def yardstick(name: str) -> dict[str, Any]:
    """Return the arguments of the line that the codecs are held against."""
    return {"color": INK, "linewidth": 1.6, "linestyle": (0, (6, 2)), "label": name, "zorder": 7}


def label_of(name: str) -> str:
    """Return a name short enough for a legend, which would leave out one that begins with "_"."""
    name = f"\u200b{name}" if name.startswith("_") else name
    return shorten(name, MOST_LABEL_CHARACTERS)
