"""KVTC for a model of thousands of channels a token: fitted to harvested caches, in three forms.

- `kvtc-ideal`: one step for all components, ideal static entropy coding, nothing raw;
- `kvtc-ideal-sink1`: the same with the first token raw. A real model's sink has massive activations, which would take
  axes of their own and cost every token;
- `kvtc`: as published, four sinks and 128 recent tokens raw, blocks of bits, DEFLATE.

The axes are those of `eval.rivals.kvtc`, keys and values apart. Caches come from shards, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.real_model.measure import Point
from eval.real_model.rows import digest
from eval.rivals.kvtc import MOST_ROWS, WIDE_CHANNELS, at_targets, fit
from eval.rivals.kvtc_ideal import KvtcIdeal, Tables
from eval.rivals.protocol import Calibration
from kvcompress.channels import layer_shapes
from kvcompress.shards import FIT, Shards
from kvcompress.snapshot import KVSnapshot, LayerKV

RATES = (5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 45.0, 64.0)
FEW_RATES = (5.7, 11.3, 22.6, 45.0)
TARGETS = (8, 16, 32)
FORMS = ("kvtc-ideal-sink1", "kvtc-ideal", "kvtc")

WIDE_ROWS = 2048
"""Tokens that spreads are measured on, of a wide cache: 11,520 latents of them take 94 MB."""

MOST_BLOCK_RANK = 3072
"""Components that the published form may give bits to: at its rates hardly any beyond them would get some."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardCalibration(Calibration):
    """Harvested caches as calibration, read one at a time.

    Attributes:
        shards: Of sessions that are not measured.
        tokens: Caches are cut at.
    """

    shards: Shards
    tokens: int

    @classmethod
    def of(cls, directory: Path, sessions: int, tokens: int) -> ShardCalibration:
        """Take the first sessions of a harvest that are for fitting."""
        shards = Shards(directory).part(FIT)
        shards.rows = shards.rows[:sessions]
        return cls(None, None, [torch.zeros(0)] * len(shards), shards, tokens)

    def snapshots(self) -> Iterator[KVSnapshot]:
        """Yield the cache of each session."""
        for number in range(len(self.shards)):
            yield shortened(self.shards.snapshot(number), self.tokens)


def shortened(snapshot: KVSnapshot, tokens: int) -> KVSnapshot:
    """Return the first tokens of a snapshot."""
    layers = tuple(
        LayerKV(layer.keys[:, :tokens], layer.values[:, :tokens], layer.positions[:tokens]) for layer in snapshot.layers
    )
    return KVSnapshot(layers, snapshot.token_ids[:tokens], snapshot.origin)


def fingerprint(directory: Path, sessions: int, tokens: int) -> str:
    """Return what rows of KVTC are known by before it is fitted: what it is fitted to."""
    shards = Shards(directory).part(FIT)
    numbers = range(min(sessions, len(shards)))
    return digest([shards.token_ids(number)[:tokens] for number in numbers])


def names() -> list[tuple[str, str]]:
    """Return form and name of every point, in the order measured."""
    ideal = [(form, f"{form}-{rate:g}x") for form, rates in _ideal_rates() for rate in rates]
    return ideal + [("kvtc", f"kvtc-{target}x") for target in TARGETS]


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
    shapes = layer_shapes(next(calibration.snapshots()))
    wide = sum(shape.channels for shape in shapes) > 2 * WIDE_CHANNELS
    for form, rates in _ideal_rates():
        sinks = 1 if form == FORMS[0] else 0
        if not {form, *(["kvtc"] if sinks else [])} & set(forms):
            continue
        say(f"fitting the axes of {form} to {len(calibration.shards)} sessions")
        transform, latents = fit(calibration, sinks, most_rows=WIDE_ROWS if wide else MOST_ROWS)
        if form in forms:
            tables = Tables(torch.cat(latents, 1))
            yield [_point(form, KvtcIdeal(transform, tables, rate, sinks), known) for rate in rates]
        if sinks and "kvtc" in forms:
            say("allocating the bits of kvtc as published")
            yield [_point("kvtc", one, known) for one in at_targets(transform, latents, TARGETS, MOST_BLOCK_RANK)]


def _point(form: str, rival: Any, known: str) -> Point:
    return Point("kvtc", form, rival.name, known, rival.encode, rival.decode)
