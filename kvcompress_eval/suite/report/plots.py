"""The figures of the suite's report, as SVG in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcompress.report.palette import CARD, MUTED, TIER_COLOURS
from kvcompress.report.sheet import HALF_INCHES, WIDE_INCHES, Sheet
from kvcompress.report.spelling import TIMES, spell
from kvcompress_eval.suite.report.facts import KL_BOUNDS_NATS, Codec, Result, families, kl_nats, measured, shown
from kvcompress_eval.suite.report.palette import Look, curves, label_of, looks, yardstick
from kvcompress_eval.suite.report.series import distances

LEAST_KL_NATS = 1e-6  # where a figure ends whose axis is logarithmic; less is drawn at the edge
MOST_TICKS = 6
WIDE_LEGEND, HALF_LEGEND = 5, 2  # columns
NARROW_INCHES = 4.2  # on a phone a wide figure would be too small to read: it is drawn a second time for that


def _wide(name: str, height_inches: float, narrow: bool) -> Sheet:
    """Return a sheet over the whole width of the page, or of a phone."""
    if narrow:
        return Sheet(f"{name}-narrow", NARROW_INCHES, 0.9 * height_inches)
    return Sheet(name, WIDE_INCHES, height_inches)


def rate_and_damage(result: Result, *, narrow: bool = False) -> str:
    """Return mean KL over size ratio of every codec, families joined, tiers shaded, the bound dashed."""
    codecs, look = measured(result), looks(families(result))
    floor = _floor([kl_nats(codec) for codec in codecs])
    with _wide("rate", 6.6, narrow) as sheet:
        axes = sheet.axes
        for family in families(result):
            _family(axes, [codec for codec in codecs if codec["family"] == family], look[family], floor)
        bound = sorted(result.get("bound") or [], key=lambda row: row["size_ratio"])
        if bound:
            values = [max(row["kl_nats"], floor) for row in bound]
            axes.plot([row["size_ratio"] for row in bound], values, **yardstick("bound"))
        _log_ratio(axes, narrow)
        _log_kl(axes, floor)
        _tier_bands(axes, inside=narrow)
        sheet.legend(HALF_LEGEND if narrow else WIDE_LEGEND)
    return sheet.svg(f"Mean KL over size ratio of {len(codecs)} codecs in {len(families(result))} families")


def _family(axes: Any, codecs: Sequence[Codec], look: Look, floor: float) -> None:
    """Draw one family: its points, joined, with their standard errors."""
    ratios = [codec["size"]["size_ratio"] for codec in codecs]
    kls = [codec["fidelity"]["kl_nats"] for codec in codecs]
    x, y = [row["mean"] for row in ratios], [max(row["mean"], floor) for row in kls]
    x_error = [row["standard_error"] or 0.0 for row in ratios]
    # A point at the edge stands for less than it shows, so it has no error bar.
    y_error = [(row["standard_error"] or 0.0) if row["mean"] > floor else 0.0 for row in kls]
    bars = {
        "xerr": [[min(error, 0.9 * value) for error, value in zip(x_error, x, strict=True)], x_error],
        "yerr": [[min(error, value - 0.9 * floor) for error, value in zip(y_error, y, strict=True)], y_error],
    }
    # Two calls, for the legend would show the bars of the one.
    axes.errorbar(x, y, **bars, fmt="none", ecolor=look.colour, elinewidth=1.0, zorder=look.order)
    axes.plot(x, y, label=label_of(codecs[0]["family"]), **look.line())


def kl_survival(result: Result, *, narrow: bool = False) -> str:
    """Return the share of tokens whose KL is above a value, both logarithmic."""
    look = looks(families(result))
    codecs = [codec for codec in shown(result) if any(nats > 0 for _, nats in codec["kl_quantiles"])]
    with _wide("survival", 4.4, narrow) as sheet:
        for codec, style in curves(codecs, look):
            points = [(kl, 1 - fraction) for fraction, kl in sorted(codec["kl_quantiles"]) if fraction < 1 and kl > 0]
            sheet.axes.plot([kl for kl, _ in points], [share for _, share in points], **style | {"marker": ""})
        _log(sheet.axes, "x", lambda value: f"{value:g}")
        _log(sheet.axes, "y", lambda value: f"{100 * value:g} %")
        sheet.axes.set_xlim(left=max(LEAST_KL_NATS, sheet.axes.get_xlim()[0]))
        sheet.axes.set_ylim(top=1.2)
        sheet.axes.set_xlabel("KL of a token, nats")
        sheet.axes.set_ylabel("tokens above it")
        sheet.legend(HALF_LEGEND if narrow else 3)
    return sheet.svg(f"Share of tokens whose KL is above a value, for {_listed(codecs)}")


def bits_by_layer(result: Result) -> str:
    """Return bits per value of each layer."""
    found = {name: list(values) for name, values in (result.get("bits_by_layer") or {}).items()}
    return _by_layer(result, found, "layers", "bits a value", "Bits a value spent on each layer")


def attention_error(result: Result) -> str:
    """Return the error of the attention output in each layer, for the shown codecs."""
    found = {codec["name"]: codec.get("attention_error_by_layer") or [] for codec in shown(result)}
    found = {name: values for name, values in found.items() if values}
    return _by_layer(result, found, "attention", "error", "Error of the attention output in each layer")


def _by_layer(result: Result, found: Mapping[str, Sequence[float]], name: str, axis: str, told: str) -> str:
    codecs = [codec for codec in measured(result) if codec["name"] in found]
    look = looks(families(result))
    with Sheet(name, HALF_INCHES, 3.9) as sheet:
        for codec, style in curves(codecs, look):
            values = found[codec["name"]]
            sheet.axes.plot(range(len(values)), values, **style)
        every = [value for codec in codecs for value in found[codec["name"]]]
        if every and min(every) > 0 and max(every) > 8 * min(every):
            _log(sheet.axes, "y", lambda value: f"{value:g}")
        else:
            sheet.axes.set_ylim(bottom=0)
        sheet.axes.set_xlabel("layer")
        sheet.axes.set_ylabel(axis)
        sheet.axes.xaxis.get_major_locator().set_params(integer=True)
        sheet.legend(HALF_LEGEND)
    return sheet.svg(f"{told}, for {_listed(codecs)}")


def recall_by_distance(result: Result, *, narrow: bool = False) -> str:
    """Return bars of the share of facts recalled, by how far back they were said."""
    codecs = [codec for codec in shown(result) if codec["recall"] and codec["recall"]["by_distance"]]
    look, buckets = looks(families(result)), distances(codecs)
    series: list[tuple[str, dict[str, Any], dict[tuple[int, int], float]]] = []
    asked: dict[tuple[int, int], int] = {}
    for codec in codecs:
        rows = {(row["from_tokens"], row["to_tokens"]): row for row in codec["recall"]["by_distance"] if row["asked"]}
        asked |= {bucket: row["asked"] for bucket, row in rows.items()}
        if not series:
            exact = {bucket: row["exact_uncompressed"] / row["asked"] for bucket, row in rows.items()}
            series.append(("exact cache", {"color": MUTED}, exact))
        style = {"color": look[codec["family"]].colour, "hatch": _HATCHES[codec["tier"]], "edgecolor": CARD}
        series.append((label_of(codec["name"]), style, {b: row["exact"] / row["asked"] for b, row in rows.items()}))
    with _wide("recall", 3.8, narrow) as sheet:
        width = 0.84 / len(series)
        for index, (name, style, shares) in enumerate(series):
            places = [place + (index - (len(series) - 1) / 2) * width for place in range(len(buckets))]
            heights = [100 * shares.get(bucket, 0.0) for bucket in buckets]
            sheet.axes.bar(places, heights, width=0.92 * width, label=name, linewidth=0, **style)
        to = " to\n" if narrow else " to "
        labels = [f"{low:,}{to}{high:,}\n{asked.get((low, high), 0)} asked" for low, high in buckets]
        sheet.axes.set_xticks(range(len(buckets)), labels)
        sheet.axes.grid(visible=False, axis="x")
        sheet.axes.set_ylim(0, 105)
        sheet.axes.set_ylabel("facts recalled, %")
        sheet.axes.set_xlabel("tokens between fact and question")
        sheet.legend(HALF_LEGEND if narrow else 4)
    return sheet.svg(f"Share of facts recalled by distance, for the exact cache and {_listed(codecs)}")


_HATCHES = {"transparent": "", "high": "//", "usable": "xx", None: ".."}


def first_token(result: Result) -> str:
    """Return seconds until the model can go on over the speed of the link."""
    economics, look = result["economics"], looks(families(result))
    codecs = [codec for codec in shown(result) if economics["link_seconds"].get(codec["name"])]
    with Sheet("link", HALF_INCHES, 4.2) as sheet:
        axes = sheet.axes
        for codec, style in curves(codecs, look):
            row = economics["link_seconds"][codec["name"]]
            points = sorted((float(speed), seconds) for speed, seconds in row.items())
            axes.plot([x for x, _ in points], [y for _, y in points], **style)
        axes.axhline(economics["prefill_seconds"], **yardstick("prefill again"))
        speeds = sorted({float(speed) for row in economics["link_seconds"].values() for speed in row})
        _log_at(axes, speeds)
        _log(axes, "y", lambda value: spell(value, "seconds"))
        axes.set_xlabel("link, Mbit/s")
        axes.set_ylabel("transfer and restore")
        sheet.legend(HALF_LEGEND)
    return sheet.svg(f"Seconds to the first token over the speed of the link, for {_listed(codecs)}")


def restore_by_length(result: Result) -> str:
    """Return restore and prefill over the length of the session."""
    rows = result["economics"].get("lengths") or []
    fields = ("prefill again", "prefill_seconds", "restore_seconds")
    return _by_tokens(result, rows, "lengths", fields, "restore", "seconds")


def memory_by_length(result: Result) -> str:
    """Return bytes over the length of the session."""
    rows = result["economics"]["memory"]
    return _by_tokens(result, rows, "memory", ("16-bit cache", "raw_bytes", "coded_bytes"), "bytes", "bytes")


def _by_tokens(
    result: Result, rows: Sequence[Any], name: str, fields: tuple[str, str, str], axis: str, unit: str
) -> str:
    """Return lines over the length; `fields`: the yardstick's name, its field, the field by codec."""
    rows, look = sorted(rows, key=lambda row: row["tokens"]), looks(families(result))
    codecs = [codec for codec in shown(result) if any(codec["name"] in row[fields[2]] for row in rows)]
    with Sheet(name, HALF_INCHES, 4.2) as sheet:
        axes = sheet.axes
        for codec, style in curves(codecs, look):
            points = [(row["tokens"], row[fields[2]][codec["name"]]) for row in rows if codec["name"] in row[fields[2]]]
            axes.plot([x for x, _ in points], [y for _, y in points], **style)
        axes.plot([row["tokens"] for row in rows], [row[fields[1]] for row in rows], **yardstick(fields[0]))
        _log_at(axes, [row["tokens"] for row in rows])
        _log(axes, "y", lambda value: spell(value, unit).replace(".00", ""))
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(axis)
        sheet.legend(HALF_LEGEND)
    return sheet.svg(f"{axis} over tokens of context, for {fields[0]} and {_listed(codecs)}".capitalize())


def drift(result: Result) -> str:
    """Return mean KL after each further hop: decoded, gone on with, encoded again."""
    hops, look = result.get("hops") or {}, looks(families(result))
    codecs = [codec for codec in measured(result) if hops.get(codec["name"])]
    floor = _floor([row["kl_nats"] for codec in codecs for row in hops[codec["name"]]])
    with Sheet("hops", HALF_INCHES, 3.9) as sheet:
        for codec, style in curves(codecs, look):
            rows = sorted(hops[codec["name"]], key=lambda row: row["hop"])
            values = [max(row["kl_nats"], floor) for row in rows]
            sheet.axes.plot([row["hop"] for row in rows], values, **style)
        _log_kl(sheet.axes, floor)
        _tier_bands(sheet.axes)
        sheet.axes.set_xlabel("hops")
        sheet.axes.xaxis.get_major_locator().set_params(integer=True)
        sheet.legend(HALF_LEGEND)
    return sheet.svg(f"Mean KL after each hop, for {_listed(codecs)}")


def _listed(codecs: Sequence[Codec]) -> str:
    return ", ".join(codec["name"] for codec in codecs) or "no codec"


def _floor(values: Sequence[float]) -> float:
    """Return the KL at the lower edge: half of the least one, in bounds."""
    positive = [value for value in values if value > 0]
    return min(max(0.5 * min(positive, default=1e-4), LEAST_KL_NATS), 0.1 * KL_BOUNDS_NATS["transparent"])


def _log(axes: Any, which: str, spelled: Any) -> None:
    """Make one axis logarithmic, with ticks that are always labelled."""
    from matplotlib.ticker import LogLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    # Powers of ten alone could leave a short axis without any label.
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(lambda value, _: spelled(value))
    axes.minorticks_off()


def _log_at(axes: Any, places: Sequence[float]) -> None:
    """Make the x axis logarithmic with ticks where something was measured, or at powers of ten where that is much."""
    axes.set_xscale("log")
    axes.minorticks_off()
    if len(places) <= MOST_TICKS:
        axes.set_xticks(places)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _log_ratio(axes: Any, narrow: bool) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    few = high > (30 if narrow else 3000) * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}{TIMES}")
    axes.minorticks_off()
    axes.set_xlabel("size ratio: 16-bit bytes over file bytes")


def _log_kl(axes: Any, floor: float) -> None:
    """Give the KL its logarithmic axis, wide enough that all three tiers are seen."""
    high = max(axes.dataLim.ymax, KL_BOUNDS_NATS["usable"])
    axes.set_ylim(0.7 * floor, 2 * high)
    _log(axes, "y", lambda value: f"{value:g}")
    axes.set_ylim(0.7 * floor, 2 * high)
    axes.set_ylabel("mean KL, nats")


def _tier_bands(axes: Any, *, inside: bool = False) -> None:
    """Shade the mean KL that each tier allows and name the bands at the right, within the axes or beside them."""
    low, side = axes.get_ylim()[0], (0.99, "right") if inside else (1.01, "left")
    for name, bound in KL_BOUNDS_NATS.items():
        axes.axhspan(low, bound, color=TIER_COLOURS[name], alpha=0.13, linewidth=0, zorder=0)
        place = axes.get_yaxis_transform()
        axes.text(
            side[0], (low * bound) ** 0.5, name, color=TIER_COLOURS[name], transform=place, va="center", ha=side[1]
        )
        low = bound
