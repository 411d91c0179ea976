"""The trade-off in one picture: bytes and seconds over m, from coding everything to prefilling again."""

from __future__ import annotations

from typing import Any

from eval.recompute.run import Row, at_tier
from kvcompress.report.palette import INK, MUTED, TIER_COLOURS
from kvcompress.report.sheet import WIDE_INCHES, Sheet
from kvcompress.report.spelling import spell


def draw(result: Row) -> str:
    """Return the picture as SVG that stands alone."""
    from matplotlib.ticker import LogLocator

    points, layers = result["points"], result["layers"]
    places = [point["recompute_layers"] for point in points]
    with Sheet("trade_off", WIDE_INCHES, 4.2) as sheet:
        axes = sheet.axes
        for tier, colour in TIER_COLOURS.items():
            values = [at_tier(point, tier)["file_bytes"] for point in points]
            axes.plot(places, values, "o-", color=colour, linewidth=2)
            axes.annotate(f"{tier}, bytes", (places[-1], values[-1]), color=colour, **_BESIDE)
        axes.plot([layers], [result["prefill"]["file_bytes"]], "s", color=INK)
        axes.annotate("token ids, bytes", (layers, result["prefill"]["file_bytes"]), color=INK, **_BEFORE)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: spell(value, "bytes").replace(".00", ""))
        axes.set_xlabel("layers run when the session is restored, m")
        axes.set_ylabel("file")
        axes.set_xticks([*places, layers], [*map(str, places), f"{layers}: prefill"])
        axes.set_xlim(-0.3, layers + 0.4)
        _seconds(axes, [*places, layers], result)
    return sheet.svg(_told(result), alone=True)


_BESIDE: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
_BEFORE: dict[str, Any] = {"xytext": (-12, 0), "textcoords": "offset points", "ha": "right", "va": "center"}


def _seconds(axes: Any, places: list[int], result: Row) -> None:
    """Draw seconds against an axis of their own, at the right."""
    values = [point["restore_seconds"] for point in result["points"]] + [result["prefill"]["prefill_seconds"]]
    right = axes.twinx()
    right.plot(places, values, "D--", color=MUTED, linewidth=1.6)
    right.annotate(f"restore {result['long_tokens']:,} tokens", (places[-1], values[-1]), color=MUTED, **_BEFORE)
    right.set_ylim(0, 1.15 * max(values))
    right.yaxis.set_major_formatter(lambda value, _: spell(value, "seconds"))
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    right.set_ylabel("restore, broken line")


def _told(result: Row) -> str:
    rows = [
        f"m = {point['recompute_layers']}: {spell(at_tier(point, 'transparent')['file_bytes'], 'bytes')}, "
        f"{spell(point['restore_seconds'], 'seconds')}"
        for point in result["points"]
    ]
    return f"Bytes and seconds over m; transparent files: {'; '.join(rows)}"
