"""KVTC for a model of thousands of channels a token: fitted to harvested caches, in three forms.

- `kvtc-ideal`: one step for all components, ideal static entropy coding, nothing raw;
- `kvtc-ideal-sink1`: the same with the first token raw. A real model's sink has massive activations, which would take
  axes of their own and cost every token;
- `kvtc`: as published, four sinks and 128 recent tokens raw, blocks of bits, DEFLATE.

The axes are those of `kvcompress_eval.baselines.kvtc`, keys and values apart. Caches come from shards, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kvcompress.data.shards import FIT, Shards
from kvcompress_eval.baselines.kvtc import MOST_BLOCK_RANK, WIDE_ROWS, WIDE_TARGETS, at_targets, is_wide
from kvcompress_eval.baselines.kvtc_ideal import FEW_RATES, RATES, curve
from kvcompress_eval.baselines.kvtc_transform import MOST_ROWS, fit
from kvcompress_eval.baselines.shards import ShardCalibration
from kvcompress_eval.real_model.measure import Point
from kvcompress_eval.suite.rows import digest

FORMS = ("kvtc-ideal-sink1", "kvtc-ideal", "kvtc")


def fingerprint(directory: Path, sessions: int, tokens: int) -> str:
    """Return what rows of KVTC are known by before it is fitted: what it is fitted to."""
    shards = Shards(directory).part(FIT)
    numbers = range(min(sessions, len(shards)))
    return digest([shards.token_ids(number)[:tokens] for number in numbers])


def names() -> list[tuple[str, str]]:
    """Return form and name of every point, in the order measured."""
    ideal = [(form, f"{form}-{rate:g}x") for form, rates in _ideal_rates() for rate in rates]
    return ideal + [("kvtc", f"kvtc-{target}x") for target in WIDE_TARGETS]


def _ideal_rates() -> tuple[tuple[str, tuple[float, ...]], ...]:
    return ((FORMS[0], RATES), (FORMS[1], FEW_RATES))


def points(
    directory: Path, sessions: int, tokens: int, forms: Sequence[str] = FORMS, say: Callable[[str], None] = print
) -> Iterator[list[Point]]:
    """Fit forms one after another and yield the points of each; minutes for thousands of channels.

    Args:
        directory: Of a harvest of sessions that are not measured.
        sessions: Fitted to, at most.
        tokens: Of each.
        forms: Those that are wanted.
        say: Called with a line before each fit.
    """
    calibration, known = ShardCalibration.of(directory, sessions, tokens), fingerprint(directory, sessions, tokens)
    for form, rates in _ideal_rates():
        sinks = 1 if form == FORMS[0] else 0
        if not {form, *(["kvtc"] if sinks else [])} & set(forms):
            continue
        say(f"fitting the axes of {form} to {len(calibration.shards)} sessions")
        transform, latents = fit(calibration, sinks, most_rows=WIDE_ROWS if is_wide(calibration) else MOST_ROWS)
        if form in forms:
            yield [_point(form, one, known) for one in curve(transform, latents, rates, sinks)]
        if sinks and "kvtc" in forms:
            say("allocating the bits of kvtc as published")
            yield [_point("kvtc", one, known) for one in at_targets(transform, latents, WIDE_TARGETS, MOST_BLOCK_RANK)]


def _point(form: str, baseline: Any, known: str) -> Point:
    return Point("kvtc", form, baseline.name, known, baseline.encode, baseline.decode)
