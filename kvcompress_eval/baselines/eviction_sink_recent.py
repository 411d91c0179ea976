"""Keep the first tokens and the newest: the scorer `sink_recent` of `kvcompress.prune`, chosen layer by layer."""

from __future__ import annotations

from torch import Tensor

from kvcompress.prune.scorers.sink_recent import layer_scores
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.eviction import points
from kvcompress_eval.baselines.protocol import Baseline, Calibration


class SinkRecent:
    """Four sinks for ever, then the newest."""

    name = "sink-recent"

    def score(self, snapshot: KVSnapshot, kept_tokens: int) -> list[Tensor]:
        """Return infinity for the sinks and the position for all others."""
        return layer_scores(snapshot)


def family(calibration: Calibration) -> list[Baseline]:
    """Return it at each keep fraction; there is nothing to learn."""
    return list(points(SinkRecent()))
