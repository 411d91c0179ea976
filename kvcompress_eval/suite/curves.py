"""Curves of many points, thinned to a few."""

from __future__ import annotations

from kvcompress_eval.baselines.protocol import Baseline


def thin(found: list[Baseline], most: int) -> list[Baseline]:
    """Return at most `most` points of each curve, spread over its range; named quality words stay."""
    curves: dict[str, list[Baseline]] = {}
    for point in found:
        curves.setdefault(point.family, []).append(point)
    return [point for curve in curves.values() for point in _thinned(curve, most)]


def _thinned(curve: list[Baseline], most: int) -> list[Baseline]:
    if len(curve) <= most:
        return curve
    named = [point for point in curve if getattr(point, "quality", None)]
    if len(named) >= most:
        return named
    step = (len(curve) - 1) / max(1, most - 1)
    return [curve[round(index * step)] for index in range(most)]
