"""Keep the first tokens and the newest: StreamingLLM.

After "Efficient Streaming Language Models with Attention Sinks" (Xiao et al., arXiv 2309.17453). The paper gives kept
tokens new positions inside the cache; here they keep their own, as every pruned snapshot does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eval.rivals.eviction import points
from eval.rivals.protocol import Calibration, Rival
from kvcompress.snapshot import KVSnapshot

SINK_TOKENS = 4


class SinkRecent:
    """Four sinks for ever, then the newest."""

    name = "sink-recent"

    def score(self, snapshot: KVSnapshot, kept_tokens: int) -> list[Tensor]:
        """Return infinity for the sinks and the position for all others."""
        scores = []
        for layer in snapshot.layers:
            score = layer.positions.double()
            score[:SINK_TOKENS] = torch.inf
            scores.append(score)
        return scores


def family(calibration: Calibration) -> list[Rival]:
    """Return it at each keep fraction; there is nothing to learn."""
    return list(points(SinkRecent()))
