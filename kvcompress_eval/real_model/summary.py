"""From rows to the report: figures over sessions with intervals, targets beside them, KVTC at equal KL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from kvcompress_eval.real_model.equal_kl import advantage
from kvcompress_eval.real_model.interval import mean_of, ratio_of
from kvcompress_eval.real_model.quoted import QUOTED
from kvcompress_eval.real_model.targets import bound_checks, kvtc_checks, size_checks
from kvcompress_eval.suite.rows import Row

MEANS = ("kl_near_nats", "kl_far_nats", "top1_near", "top1_far")
PLACES = ("near", "far")


def summarise(ours: Sequence[Row], kvtc: Sequence[Row], shares: Mapping[str, float]) -> dict[str, Any]:
    """Return points, targets and comparisons.

    Args:
        ours: Rows of this project's codecs, in the order measured.
        kvtc: Rows of KVTC.
        shares: Codec -> share of the layers that it leaves to the model.
    """
    points = [point(rows) for rows in grouped(ours, ("source", "codec", "point"))]
    compared = compare(ours, kvtc)
    return {
        "points": points,
        "kvtc": [curve_point(rows) for rows in grouped(kvtc, ("codec", "point"))],
        "equal_kl": compared,
        "checks": {
            "size": size_checks(points, shares),
            "kvtc": kvtc_checks(compared, shares),
            "bounds": bound_checks(points),
        },
        "quoted": list(QUOTED),
    }


def grouped(rows: Sequence[Row], names: Sequence[str]) -> list[list[Row]]:
    """Return rows that agree in some fields together, groups in the order of their first rows."""
    order: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        order.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(order.values())


def point(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of one codec at one quality over its sessions."""
    first = rows[0]
    found: dict[str, Any] = {"source": first["source"], "codec": first["codec"], "quality": first["point"]}
    return {
        **found,
        "sessions": len(rows),
        **figures(rows),
        "stored": dict(Counter(row["stored"] for row in rows)),
        "unlike": sum(row["unlike"] for row in rows),
        **{f"{name}_seconds": float(np.median([row[f"{name}_seconds"] for row in rows])) for name in _CLOCKS},
        "by_category": {name: {"sessions": len(part), **figures(part)} for name, part in by_category(rows)},
    }


_CLOCKS = ("encode", "decode")


def by_category(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each category, by name."""
    ordered = sorted(rows, key=lambda row: str(row["category"]))
    return [(name, list(part)) for name, part in groupby(ordered, lambda row: str(row["category"]))]


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return sizes and damage of some rows with intervals; the worst step is a maximum and has none."""
    found: dict[str, Any] = {
        "file_bytes": float(np.mean([row["file_bytes"] for row in rows])),
        "size_ratio": _ratio(rows, "raw_bytes", "file_bytes"),
        **{name: mean_of([row[name] for row in rows]).to_json() for name in MEANS},
    }
    for place in PLACES:
        found[f"lost_{place}"] = _ratio(rows, f"kl_{place}_nats", f"worth_{place}_nats")
        found[f"worst_{place}_nats"] = max(row[f"worst_{place}_nats"] for row in rows)
    return found


def _ratio(rows: Sequence[Row], above: str, below: str) -> dict[str, Any]:
    return ratio_of([row[above] for row in rows], [row[below] for row in rows]).to_json()


def curve_point(rows: Sequence[Row]) -> dict[str, Any]:
    """Return size and KL of one point of KVTC."""
    return {
        "form": rows[0]["codec"],
        "name": rows[0]["point"],
        "sessions": len(rows),
        "size_ratio": _ratio(rows, "raw_bytes", "file_bytes"),
        "kl_near_nats": mean_of([row["kl_near_nats"] for row in rows]).to_json(),
        "kl_far_nats": mean_of([row["kl_far_nats"] for row in rows]).to_json(),
        "top1_near": mean_of([row["top1_near"] for row in rows]).to_json(),
    }


def compare(ours: Sequence[Row], kvtc: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for each of our points how many times larger KVTC is at its KL, on the sessions that both measured."""
    sessions = list(dict.fromkeys(row["session"] for row in kvtc))
    forms: dict[str, list[list[Row]]] = {}
    for rows in grouped(kvtc, ("codec", "point")):
        forms.setdefault(rows[0]["codec"], []).append(_in_order(rows, sessions))
    found = []
    for rows in grouped([row for row in ours if row["source"] == "test"], ("codec", "point")):
        shared = _in_order(rows, sessions)
        result = advantage(shared, forms) if sessions and len(shared) == len(sessions) else None
        if result is not None:
            found.append({"codec": rows[0]["codec"], "quality": rows[0]["point"], **result})
    return found


def _in_order(rows: Sequence[Row], sessions: Sequence[str]) -> list[Row]:
    held = {row["session"]: row for row in rows}
    return [held[name] for name in sessions if name in held]
