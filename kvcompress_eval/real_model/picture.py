"""Size ratio and KL of every point in one picture: ours by setting, KVTC, and what others say of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvcompress.metrics.fidelity import TIERS
from kvcompress.report.palette import ACCENT, CARD, MUTED, TIER_COLOURS
from kvcompress.report.sheet import WIDE_INCHES, Sheet
from kvcompress.report.spelling import TIMES
from kvcompress_eval.suite.report.palette import CHIEF_COLOUR, OTHER_COLOURS

OURS = (ACCENT, *OTHER_COLOURS[2:])  # not those of the tiers
Line = Mapping[str, Any]


def draw(result: Mapping[str, Any]) -> str:
    """Return the picture as SVG that stands alone."""
    with Sheet("real-model", WIDE_INCHES, 6.4) as sheet:
        paint(sheet.axes, result)
        sheet.legend(3)
    return sheet.svg(_told(result), alone=True)


def paint(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw everything into a pair of axes."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for line in _lines(result):
        axes.plot(line["x"], line["y"], **line["look"])
    for tier in TIERS:
        colour = TIER_COLOURS[tier.name]
        axes.axhline(tier.max_kl_nats, color=colour, linewidth=1.2, linestyle="--", zorder=1)
        place = axes.get_yaxis_transform()
        axes.text(1.01, tier.max_kl_nats, tier.name, color=colour, transform=place, va="center")
    axes.minorticks_off()
    _ticks(axes.xaxis, (1, 2, 5), lambda value: f"{value:g}{TIMES}")
    _ticks(axes.yaxis, (1, 3), lambda value: f"{value:g}")
    following = min(128, result["settings"]["continuation_tokens"])
    axes.set_xlabel(f"16-bit bytes over file bytes, {result['settings']['tokens']:,} tokens stored")
    axes.set_ylabel(f"mean KL over {following} further tokens, nats")


def _ticks(axis: Any, places: Sequence[int], spelled: Callable[[float], str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=places, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: spelled(value)))


def _lines(result: Mapping[str, Any]) -> list[Line]:
    """Return every line: ours joined over qualities, KVTC over rates, quoted figures hollow."""
    found = []
    for number, codec in enumerate(result["codecs"]):
        points = [p for p in result["points"] if (p["source"], p["codec"]) == ("test", codec["name"])]
        pairs = [(p["size_ratio"]["value"], p["kl_near_nats"]["value"]) for p in points]
        colour = OURS[number % len(OURS)]
        look = {"color": colour, "marker": "o", "markersize": 8, "linewidth": 2.4, "zorder": 6}
        found.append(_line(pairs, f"kvcompress, {codec['name']} ({codec['share']:.0%} recomputed)", look))
    for number, form in enumerate(dict.fromkeys(p["form"] for p in result["kvtc"])):
        points = [p for p in result["kvtc"] if p["form"] == form]
        pairs = [(p["size_ratio"]["value"], p["kl_near_nats"]["value"]) for p in points]
        look = {"color": CHIEF_COLOUR, "marker": "Dsv"[number % 3], "markersize": 6, "linewidth": 1.6, "zorder": 5}
        found.append(_line(pairs, form, look | {"linestyle": ("-", "--", ":")[number % 3]}))
    for number, quoted in enumerate(result["quoted"]):
        look = {"color": MUTED, "marker": "DP^X*"[number % 5], "markersize": 7, "markerfacecolor": CARD, "zorder": 4}
        look |= {"linestyle": ":", "linewidth": 1.0}
        found.append(_line(quoted["points"], f"{quoted['name']} (quoted)", look))
    return [line for line in found if line["x"]]


def _line(pairs: Sequence[Sequence[float]], label: str, look: Mapping[str, Any]) -> Line:
    ordered = sorted((ratio, kl) for ratio, kl in pairs if kl > 0)
    return {"x": [x for x, _ in ordered], "y": [y for _, y in ordered], "look": {**look, "label": label}}


def _told(result: Mapping[str, Any]) -> str:
    points = [p for p in result["points"] if p["source"] == "test"]
    told = [
        f"{p['codec']} {p['quality']} {p['size_ratio']['value']:.1f}{TIMES} at {p['kl_near_nats']['value']:.4f}"
        for p in points
    ]
    return f"Size ratio and mean KL in nats: {'; '.join(told)}"
