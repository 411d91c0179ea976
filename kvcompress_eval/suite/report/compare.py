"""Two results of the suite side by side: what changed beyond chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvcompress.errors import InputError, about
from kvcompress.report.facts import plain, visible
from kvcompress.report.spelling import NOTHING, spell
from kvcompress.report.tables import Column, Row, Table, inline
from kvcompress_eval.suite.report.facts import Codec, Result, failed, measured
from kvcompress_eval.suite.report.schema import validate

SIGNIFICANT = 2.0  # combined standard errors
SAME_SESSIONS = ("file", "count", "tokens", "continuation_tokens")
QUARTET = ("first", "second", "change", "in s.e.")
HEADS = (*(f"{what}: {name}" for what in ("size ratio", "KL") for name in QUARTET), "beyond 2 s.e.")


def compare(result_a: Result, result_b: Result) -> str:
    """Return as Markdown, codec by codec, how the second result differs from the first.

    A difference is divided by the root of the sum of both squared standard errors. Both results saw the same sessions,
    so their errors are correlated and a difference is rather under- than overrated.

    Args:
        result_a: The earlier result.
        result_b: The later one.

    Raises:
        InputError: One does not follow the schema, or they were measured on different sessions.
    """
    for which, result in (("first result", result_a), ("second result", result_b)):
        with about(which):
            validate(result)
    a, b = visible(plain(result_a)), visible(plain(result_b))
    _require_same_sessions(a["sessions"], b["sessions"])
    before = {codec["name"]: codec for codec in measured(a)}
    after = {codec["name"]: codec for codec in measured(b)}
    both = [name for name in before if name in after]
    rows = tuple(_row(before[name], after[name]) for name in both)
    changed = [name for name, row in zip(both, rows, strict=True) if row.cells[-1]]
    said = f"{len(changed)} of {len(both)} codecs differ by more than {SIGNIFICANT:g} combined standard errors"
    lines = [f"# {inline(a['title'])} against {inline(b['title'])}", "", *_cautions(a, b)]
    lines += [f"{said}{': ' if changed else ''}{inline(', '.join(changed))}.", ""]
    columns = (Column("codec", False), *(Column(head, head != HEADS[-1]) for head in HEADS))
    lines += [Table("", "", columns, rows).markdown(), ""] if rows else []
    return "\n".join([*lines, *_alone(a, b, "first"), *_alone(b, a, "second")]).rstrip() + "\n"


def difference_in_errors(a: Mapping[str, Any], b: Mapping[str, Any]) -> float | None:
    """Return b - a over the combined standard error; None where an error is unknown, infinite where both are zero.

    Args:
        a: An estimate, {"mean", "standard_error"}.
        b: Another.
    """
    if a["standard_error"] is None or b["standard_error"] is None:
        return None
    difference = float(b["mean"] - a["mean"])
    combined = math.hypot(a["standard_error"], b["standard_error"])
    if combined > 0:
        return difference / combined
    return math.copysign(math.inf, difference) if difference else 0.0


def _row(a: Codec, b: Codec) -> Row:
    pairs = (
        ("size ratio", "ratio", a["size"]["size_ratio"], b["size"]["size_ratio"]),
        ("KL", "nats", a["fidelity"]["kl_nats"], b["fidelity"]["kl_nats"]),
    )
    cells, flags = [a["name"]], []
    for what, style, then, now in pairs:
        score = difference_in_errors(then, now)
        change = f"{now['mean'] - then['mean']:+.2g}"
        cells += [spell(then["mean"], style), spell(now["mean"], style), change]
        cells.append(NOTHING if score is None else f"{score:+.1f}")
        if score is not None and abs(score) > SIGNIFICANT:
            flags.append(f"{what} {'higher' if score > 0 else 'lower'}")
    if a["tier"] != b["tier"]:
        # Not a finding in itself: a figure near a bound changes its tier by chance.
        cells[0] += f" ({a['tier'] or 'no tier'} to {b['tier'] or 'no tier'})"
    return Row((*cells, ", ".join(flags)), a["family"])


def _require_same_sessions(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for name in SAME_SESSIONS:
        if a[name] != b[name]:
            told = f"{name} is {a[name]!r} in the first and {b[name]!r} in the second"
            what = f"the results come from different sessions: {told}"
            raise InputError(what, "Compare results of the same sessions")


def _cautions(a: Result, b: Result) -> list[str]:
    """Return a line for each circumstance other than the codecs that differs."""
    lines = []
    for result, which in ((a, "first"), (b, "second")):
        if result["warning"]:
            lines.append(f"The {which} result warns: {result['warning']}")
    models = [(result["model"]["name"], result["model"]["weights"]) for result in (a, b)]
    if models[0] != models[1]:
        told = [f"{name} ({weights})" for name, weights in models]
        lines.append(f"Warning: the models differ, {told[0]} and {told[1]}; a difference need not be the codec's")
    for part in ("machine", "versions", "seeds", "quick"):
        if a[part] != b[part]:
            lines.append(f"Note: {part} differ" if part != "quick" else "Note: only one of the runs is quick")
    return [line for text in lines for line in (f"> {inline(text)}", ">")][:-1] + ([""] if lines else [])


def _alone(result: Result, other: Result, which: str) -> list[str]:
    """Name the codecs that only one result measured, with the reason where the other tried and failed."""
    names = {codec["name"] for codec in measured(other)}
    reasons = {codec["name"]: codec["failed"] for codec in failed(other)}
    alone = [codec["name"] for codec in measured(result) if codec["name"] not in names]
    told = [f"{name} (failed in the other: {reasons[name]})" if name in reasons else name for name in alone]
    return [f"Only in the {which}: {inline(', '.join(told))}.", ""] if told else []
