"""How reports spell numbers: one table of styles, with standard errors and intervals beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NOTHING = "-"
"""Stands where nothing was measured."""

TIMES = "\N{MULTIPLICATION SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


def spell(value: float | None, style: str) -> str:
    """Return a number in one of the `STYLES`, `NOTHING` for None.

    Raises:
        KeyError: There is no such style.
    """
    return NOTHING if value is None else STYLES[style](value)


def with_error(estimate: Mapping[str, Any] | None, style: str) -> str:
    """Return a mean with its standard error, "18.3× ± 0.2", or alone where that is unknown.

    Args:
        estimate: With `mean` and `standard_error`, the second None for a single session.
        style: One of the `STYLES`.
    """
    if estimate is None:
        return NOTHING
    mean, error = estimate["mean"], estimate["standard_error"]
    if error is None:
        return spell(mean, style)
    if style == "share":
        digits = 2 if mean < 0.1 else 1
        return f"{100 * mean:.{digits}f} {PLUS_MINUS} {100 * error:.{digits}f} %"
    return f"{spell(mean, style)} {PLUS_MINUS} {_error(mean, error, style)}"


def with_interval(figure: Mapping[str, Any] | None, style: str, between: str = " to ") -> str:
    """Return a figure with its 95 % interval, "18.3× (17.9 to 18.8)", or alone where it has none.

    Args:
        figure: With `mean` or `value`, and `low` and `high`, which are None or absent without an interval.
        style: One of the `STYLES`; the ends of the interval lack a per cent sign.
        between: Stands between the ends of the interval.
    """
    if figure is None:
        return NOTHING
    spelled = spell(figure["value" if "value" in figure else "mean"], style)
    if figure.get("low") is None:
        return spelled
    low, high = (spell(figure[end], style).removesuffix(" %") for end in ("low", "high"))
    return f"{spelled} ({low}{between}{high})"


def count_of(number: int, name: str) -> str:
    """Return a number with what it counts in singular or plural, "one thread" or "4 threads"."""
    return f"one {name}" if number == 1 else f"{number:,} {name}s"


def _nats(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _short_nats(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _per_cent(value: float) -> str:
    return f"{100 * value:.2f}" if value < 0.1 else f"{100 * value:.1f}"


def _plain_ratio(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _points(value: float) -> str:
    return "100" if value == 1 else f"{100 * value:.1f}"


def _signed_points(value: float) -> str:
    return f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0.0"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _duration(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _bytes(value: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f} bytes"


STYLES: Mapping[str, Callable[[float], str]] = {
    "nats": _nats,
    "short nats": _short_nats,  # for narrow tables
    "share": lambda value: f"{_per_cent(value)} %",
    "per cent": _per_cent,  # a share without its sign
    "points": _points,  # the same with one decimal
    "signed points": _signed_points,
    "ratio": lambda value: f"{_plain_ratio(value)}{TIMES}",
    "plain ratio": _plain_ratio,
    "times": lambda value: f"{value:.1f}",
    "seconds": _seconds,
    "duration": _duration,
    "bytes": _bytes,
    "count": lambda value: f"{value:,.0f}",
    "number": lambda value: f"{value:.4g}",
    "rough": lambda value: f"{value:.2g}",
    "worth": lambda value: f"{value:.3f}",
    "score": lambda value: f"{value:.3f}",
    "fixed": lambda value: f"{value:.4f}",
}


def _error(mean: float, error: float, style: str) -> str:
    """Return a standard error with the decimals of its mean, or one digit of its own where these would say zero."""
    if style == "ratio":
        return f"{error:,.0f}" if mean >= 100 and error >= 1 else f"{error:.1f}" if error >= 0.05 else f"{error:.1g}"
    if style == "nats" and mean >= 0.001 and error >= 0.00005:
        return f"{error:.4f}"
    if style == "worth":
        return f"{error:.3f}"
    if style == "fixed":
        return f"{error:.4f}"
    return f"{error:.1e}" if 0 < error < 0.001 else f"{error:.2g}"
