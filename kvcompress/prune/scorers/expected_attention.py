"""Keep the tokens that future queries are expected to attend to, judged by the statistics of earlier queries.

After "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution" (Devoto et
al., arXiv 2510.00636). Queries are taken as normal; with mean m and covariance S, both rotated on average over the
next 128 positions, a key k expects the weight exp(m k s + k S k s^2 / 2), s being the attention's scaling; weights are
normalised over tokens and multiplied by the value's norm. What differs: moments come from the session's own latest
queries, and a token has one score, the mean over layers and heads. Cost: the model runs over the last queries.
Evidence: queries.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from kvcompress.hf.channels import Rope
from kvcompress.hf.rope import rope_of
from kvcompress.prune.evidence.record import QUERIES, Evidence, QueryStatistics, over_layers
from kvcompress.snapshot import LayerKV

CONTINUATION_TOKENS = 128


class ExpectedAttention:
    """Expected attention of queries to come, times the value's norm."""

    name = "expected_attention"
    needs: tuple[str, ...] = (QUERIES,)

    def score(self, evidence: Evidence) -> Tensor:
        """Return the expected share of attention times the value's norm, mean over heads and layers."""
        snapshot = evidence.snapshot
        rope, start = rope_of(snapshot.origin), snapshot.origin.next_position
        scores = [
            _layer_score(index, layer, statistics, rope, start)
            for index, (layer, statistics) in enumerate(zip(snapshot.layers, evidence.require_queries(), strict=True))
        ]
        return over_layers(snapshot, scores)


def _layer_score(index: int, layer: LayerKV, statistics: QueryStatistics, rope: Rope, start: int) -> Tensor:
    """Return [T] float32."""
    rotation = mean_rotation(rope, index, statistics.mean.shape[1], start)
    mean = statistics.mean @ rotation
    covariance = rotation.T @ statistics.covariance @ rotation
    groups = statistics.heads // len(layer.keys)
    keys = repeat(layer.keys.float(), "h t d -> (h g) t d", g=groups)  # [Hq, T, D]
    first = torch.einsum("htd,hd->ht", keys, mean) * statistics.scaling
    second = torch.einsum("htd,hde,hte->ht", keys, covariance, keys) * statistics.scaling**2 / 2
    weights = torch.softmax(first + second, dim=1)
    norms = repeat(layer.values.float().norm(dim=2), "h t -> (h g) t", g=groups)
    found: Tensor = (weights * norms).mean(0)
    return found


def mean_rotation(rope: Rope, layer: int, size: int, start: int) -> Tensor:
    """Return the mean over the next positions of the rotation, as the matrix [D, D] that rows are multiplied by."""
    positions = torch.arange(start, start + CONTINUATION_TOKENS)
    unit = torch.eye(size, dtype=torch.float32)[:, None].expand(size, CONTINUATION_TOKENS, size)
    turned: Tensor = rope.redo(layer, unit, positions)
    return turned.float().mean(1)


SCORER = ExpectedAttention()
