"""Baselines that take minutes to fit, without fitting them again: a run that goes on knows their points by name.

What was fitted is noted in the rows: names, sizes, fingerprints. Where all rows of a family are there, the points stand
in for themselves, and the family is fitted again only if something new is asked of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from kvcompress.errors import InputError
from kvcompress.format.container import Encoded
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.registry import FITTED, Own, build_all
from kvcompress_eval.baselines.shards import ShardCalibration
from kvcompress_eval.suite.rows import Key, Rows, digest

Built = tuple[str, list[Baseline], str | None]
Measured = Callable[[Sequence[Baseline]], bool]


class Recorded:
    """A fitted point that an earlier part of the run measured.

    Args:
        point: What was noted of it.
        again: Fits its family again and returns the points by name.
    """

    def __init__(self, point: dict[str, Any], again: Callable[[], dict[str, Baseline]]) -> None:
        self.name, self.family, self.kind = str(point["name"]), str(point["family"]), str(point["kind"])
        self.codec_bytes, self.fingerprint = int(point["codec_bytes"]), str(point["fingerprint"])
        self._again = again

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code with the point itself."""
        return self._itself().encode(snapshot)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Decode with the point itself."""
        return self._itself().decode(encoded)

    def _itself(self) -> Baseline:
        found = self._again().get(self.name)
        if found is None or found.fingerprint != self.fingerprint:
            raise InputError(f"{self.name} is another codec when fitted again", "Measure it anew, without --resume")
        return found


def points_of(
    names: Sequence[str], calibration: Calibration, own: Own, rows: Rows, measured: Measured
) -> Iterator[Built]:
    """Yield name, points and reason of failure of every family, as `build_all` does.

    Args:
        names: Families.
        calibration: What they may be fitted to.
        own: What is measured of this project's codecs.
        rows: Where fitted points are noted.
        measured: Tells whether all rows of some points are there.
    """
    known: dict[str, list[Baseline]] = {}
    for name in (name for name in names if name in FITTED):
        row = rows.get(_key(name, calibration))
        found = _stand_ins(row["points"], name, calibration) if row else []
        if found and measured(found):
            known[name] = found
    yield from ((name, found, None) for name, found in known.items())
    for name, found, reason in build_all([name for name in names if name not in known], calibration, own):
        if name in FITTED and reason is None:
            rows.add(_key(name, calibration), {"points": [_noted(point) for point in found]})
        yield name, found, reason


def _stand_ins(points: Sequence[dict[str, Any]], name: str, calibration: Calibration) -> list[Baseline]:
    @cache
    def again() -> dict[str, Baseline]:
        ((_, found, reason),) = build_all([name], calibration)
        if reason is not None:
            raise InputError(f"{name} cannot be fitted again: {reason}")
        return {point.name: point for point in found}

    return [Recorded(point, again) for point in points]


def _noted(point: Baseline) -> dict[str, Any]:
    return {name: getattr(point, name) for name in ("name", "family", "kind", "codec_bytes", "fingerprint")}


def _key(name: str, calibration: Calibration) -> Key:
    """Return what decides a fit: sessions, how much is fitted, and the threads, which decide how sums are rounded."""
    if isinstance(calibration, ShardCalibration):
        ids = [calibration.shards.token_ids(number)[: calibration.tokens] for number in range(len(calibration.shards))]
    else:
        ids = list(calibration.sessions)
    size = "few" if calibration.few else "all"
    return "points", name, size, f"{torch.get_num_threads()} threads", digest(ids)
