"""Colours of figures: CSS variables in a page, fixed colours in a file of its own.

matplotlib knows no CSS variables, so each colour is drawn as a stand-in that occurs nowhere else. In a page every
stand-in becomes a variable, and the page's light or dark theme colours the figure. A figure that stands alone has no
theme: it takes greys and hues that can be seen on white and on black alike.
"""

from __future__ import annotations

INK, MUTED, LINE, ACCENT, CARD = "#010101", "#020202", "#030303", "#040404", "#050505"
TIER_COLOURS = {"transparent": "#060606", "high": "#070707", "usable": "#080808"}
FAMILY_COLOURS = tuple(f"#0b0c{index:02x}" for index in range(1, 8))
"""For families of codecs, the chief baseline's first."""

VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", CARD: "card"}
VARIABLES |= {colour: name for name, colour in TIER_COLOURS.items()}
VARIABLES |= {colour: f"family-{index}" for index, colour in enumerate(FAMILY_COLOURS, 1)}

FIXED = {
    INK: "#7a7a7a",
    MUTED: "#8a8a8a",
    LINE: "#9a9a9a66",
    ACCENT: "#2f81c7",
    CARD: "#ffffff00",
    TIER_COLOURS["transparent"]: "#2f81c7",
    TIER_COLOURS["high"]: "#3a9d5d",
    TIER_COLOURS["usable"]: "#c77d2f",
}
FIXED |= dict(
    zip(FAMILY_COLOURS, ("#c2477f", "#3a9d5d", "#c77d2f", "#7a63c7", "#2b9aa0", "#a0862b", "#b05a4a"), strict=True)
)


def coloured(svg: str, *, alone: bool) -> str:
    """Return a drawn SVG with fixed colours, or with CSS variables, in place of all stand-ins."""
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, FIXED[colour] if alone else f"var(--{variable})")
    return svg
