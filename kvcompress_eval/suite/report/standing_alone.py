"""A picture as a file of its own, which no page colours."""

from __future__ import annotations

import re

# A file of its own has no page to colour it: greys and hues that stand on white and on black alike.
COLOURS = {
    "ink": "#7a7a7a",
    "muted": "#8a8a8a",
    "line": "#9a9a9a66",
    "accent": "#2f81c7",
    "card": "#ffffff00",
    "transparent": "#2f81c7",
    "high": "#3a9d5d",
    "usable": "#c77d2f",
}


def standing_alone(svg: str) -> str:
    """Return an SVG with colours in place of the variables of a page."""
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda found: COLOURS.get(found[1], COLOURS["ink"]), svg)
