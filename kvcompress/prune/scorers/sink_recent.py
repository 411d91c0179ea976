"""Keep the first tokens and the newest: StreamingLLM.

After "Efficient Streaming Language Models with Attention Sinks" (Xiao et al., arXiv 2309.17453). The paper gives kept
tokens new positions inside the cache; here they keep their own, as in every pruned snapshot. Cost: none. Evidence:
none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.prune.evidence.record import Evidence
from kvcompress.snapshot import KVSnapshot

SINK_TOKENS = 4


class SinkRecent:
    """Four sinks for ever, then the newest."""

    name = "sink_recent"
    needs: tuple[str, ...] = ()

    def score(self, evidence: Evidence) -> Tensor:
        """Return the position of each token, and more than any position for the sinks."""
        score = torch.arange(evidence.tokens).float()
        score[:SINK_TOKENS] += evidence.tokens
        return score


def layer_scores(snapshot: KVSnapshot) -> list[Tensor]:
    """Return for each layer [T] float64: its positions, infinity for the sinks among its tokens."""
    scores = []
    for layer in snapshot.layers:
        score = layer.positions.double()
        score[:SINK_TOKENS] = torch.inf
        scores.append(score)
    return scores


SCORER = SinkRecent()
