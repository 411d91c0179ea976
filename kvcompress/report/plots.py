"""Figures of one stored file: sizes, KL along the continuation, bits by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcompress.report.palette import ACCENT, CARD, INK, MUTED, TIER_COLOURS
from kvcompress.report.sheet import HALF_INCHES, WIDE_INCHES, Sheet, shorten
from kvcompress.report.spelling import TIMES, spell

MOST_LABEL_CHARACTERS = 32
KL_FLOOR_NATS = 1e-7  # below, differences between kernels rule; a logarithmic axis needs an end


def bytes_by_section(sections: Mapping[str, int]) -> str:
    """Return horizontal bars of the bytes of each section, largest first."""
    ordered = sorted(sections.items(), key=lambda item: item[1])
    total = sum(sections.values()) or 1
    with Sheet("sections", WIDE_INCHES, 0.7 + 0.36 * len(ordered)) as sheet:
        axes = sheet.axes
        bars = axes.barh(range(len(ordered)), [size for _, size in ordered], color=ACCENT, height=0.62)
        axes.set_yticks(range(len(ordered)), [shorten(name, MOST_LABEL_CHARACTERS) for name, _ in ordered])
        labels = [f"{spell(size, 'bytes')} · {100 * size / total:.1f} %" for _, size in ordered]
        axes.bar_label(bars, labels, padding=5, color=INK)
        axes.margins(x=0.2)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: spell(value, "bytes").replace(".00", "") if value else "0")
        axes.xaxis.set_major_locator(_few_ticks())
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    most = ", ".join(f"{name} {spell(size, 'bytes')}" for name, size in reversed(ordered[-4:]))
    return sheet.svg(f"Bytes by section of the file; the largest: {most}")


def kl_along(per_token_kl_nats: Sequence[float], tiers: Mapping[str, float]) -> str:
    """Return KL at each continuation token on a logarithmic scale, with its mean and the tiers' bounds on the mean."""
    values = _floored(per_token_kl_nats)
    mean = sum(values) / len(values)
    with Sheet("along", HALF_INCHES, 3.3) as sheet:
        axes = sheet.axes
        axes.plot(range(len(values)), values, ".", color=ACCENT, markersize=4, alpha=0.75)
        _tier_lines(axes, tiers, mean)
        axes.set_xlabel("continuation token")
        _log_kl(axes, values, tiers)
        axes.set_xlim(-1, len(values))
    return sheet.svg(f"KL at each of {len(values)} continuation tokens; mean {spell(mean, 'nats')} nats")


def kl_distribution(per_token_kl_nats: Sequence[float], tiers: Mapping[str, float]) -> str:
    """Return the same values in order of size against the percentage of tokens below them."""
    values = sorted(_floored(per_token_kl_nats))
    shares = [100 * (index + 1) / len(values) for index in range(len(values))]
    with Sheet("sorted", HALF_INCHES, 3.3) as sheet:
        axes = sheet.axes
        axes.plot(shares, values, color=ACCENT, linewidth=2)
        _tier_lines(axes, tiers, sum(values) / len(values))
        axes.set_xlabel("tokens at or below, %")
        _log_kl(axes, values, tiers)
        axes.set_xlim(0, 100)
    below = 100 * sum(value <= max(tiers.values(), default=0.0) for value in values) / len(values)
    return sheet.svg(f"Sorted KL; {below:.1f} % of tokens lie at or below the loosest tier's bound")


def size_ratios(size_ratio: float, claimed: Mapping[str, float], target: float) -> str:
    """Return this file's size ratio beside the target and, hatched, what others claim for theirs."""
    ordered = sorted(claimed.items(), key=lambda item: item[1])
    names, ratios = [*(name for name, _ in ordered), "this file"], [*(ratio for _, ratio in ordered), size_ratio]
    with Sheet("ratios", WIDE_INCHES, 0.8 + 0.36 * len(names)) as sheet:
        axes = sheet.axes
        bars = axes.barh(range(len(names)), ratios, color=[MUTED] * len(ordered) + [ACCENT], height=0.62)
        axes.set_yticks(range(len(names)), [shorten(name, MOST_LABEL_CHARACTERS) for name in names])
        for bar in bars[:-1]:
            bar.set_hatch("///")
        axes.bar_label(bars, [spell(ratio, "ratio") for ratio in ratios], padding=5, color=INK)
        axes.axvline(target, color=TIER_COLOURS["usable"], linestyle="--", linewidth=1.4)
        top = len(names) - 0.45
        axes.text(target, top, f"target {target:g}{TIMES}", color=TIER_COLOURS["usable"], ha="center", va="bottom")
        axes.set_ylim(-0.55, top + 0.45)  # room for the label above the highest bar
        axes.set_xlim(0, 1.18 * max(*ratios, target))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("16-bit bytes over file bytes")
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    return sheet.svg(f"Size ratio of this file: {spell(size_ratio, 'ratio')}; the target is {target:g} times")


def bits_by_layer(layer_bits: Sequence[float]) -> str:
    """Return the bits spent on each layer."""
    with Sheet("layers", WIDE_INCHES, 2.6) as sheet:
        sheet.axes.bar(range(len(layer_bits)), layer_bits, color=ACCENT, width=0.7)
        sheet.axes.grid(visible=False, axis="x")
        sheet.axes.set_xlabel("layer")
        sheet.axes.set_ylabel("bits")
        sheet.axes.xaxis.set_major_locator(_few_ticks(whole=True))
    return sheet.svg(f"Bits spent on each of {len(layer_bits)} layers")


def _floored(values: Sequence[float | None]) -> list[float]:
    return [KL_FLOOR_NATS if value is None else max(float(value), KL_FLOOR_NATS) for value in values]


def _tier_lines(axes: Any, tiers: Mapping[str, float], mean: float) -> None:
    for name, bound in tiers.items():
        axes.axhline(bound, color=TIER_COLOURS.get(name, MUTED), linewidth=1.2, linestyle="--")
        place = axes.get_yaxis_transform()
        axes.text(1.01, bound, name, color=TIER_COLOURS.get(name, MUTED), transform=place, va="center")
    axes.axhline(mean, color=INK, linewidth=1.4)
    axes.annotate(
        f"mean {spell(mean, 'nats')}",
        (0.015, mean),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -4),
        textcoords="offset points",
        va="top",
        bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1.0},
    )


def _log_kl(axes: Any, values: Sequence[float], tiers: Mapping[str, float]) -> None:
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_ylim(0.5 * min(values), 2 * max([*values, *tiers.values()]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("KL, nats")


def _few_ticks(*, whole: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=whole)
