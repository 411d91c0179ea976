"""Similarity between the keys of tokens, which several scorers use for novelty.

Keys are taken without RoPE, for with it the same word looks different at every position. All heads and layers that hold
every token stand side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.hf.channels import rows_of
from kvcompress.prune.evidence.record import Evidence, QueryStatistics, plain_keys

ROWS = 512  # of the square of cosines at a time: 16,384 tokens then take 32 MB instead of 1 GB


def unit_keys(evidence: Evidence) -> Tensor:
    """Return [N, C] float32: keys of all layers that hold every token, side by side, each row of norm 1."""
    whole = [keys for keys in plain_keys(evidence.snapshot) if keys.shape[1] == evidence.tokens]
    if not whole or not evidence.tokens:
        return torch.zeros(evidence.tokens, 1, dtype=torch.float32)
    rows = torch.cat([rows_of(keys) for keys in whole], 1)
    centred = rows - rows.mean(0)  # a common direction of all keys would make all of them alike
    return torch.nn.functional.normalize(centred, dim=1)


def novelty(evidence: Evidence) -> Tensor:
    """Return [N] float32 in [0, 1]: 1 minus the highest cosine to the keys of any token before; 1 for the first."""
    units = unit_keys(evidence)
    highest = torch.zeros(len(units), dtype=torch.float32)
    for start in range(0, len(units), ROWS):
        stop = min(start + ROWS, len(units))
        cosines = units[start:stop] @ units[:stop].T
        later = torch.arange(stop)[None] >= torch.arange(start, stop)[:, None]
        found = cosines.masked_fill(later, 0.0).amax(1) if stop else cosines.sum(1)
        highest[start:stop] = found
    return (1 - highest).clamp(0, 1)


def similarity(evidence: Evidence) -> Tensor:
    """Return [N] float32 in [0, 1]: the cosine of each token's keys and the mean of the latest queries.

    The mean over heads and layers; where it is negative it counts as 0.
    """
    total, layers = torch.zeros(evidence.tokens, dtype=torch.float32), 0
    statistics = evidence.require_queries()
    for layer, keys, moments in zip(evidence.snapshot.layers, plain_keys(evidence.snapshot), statistics, strict=True):
        if keys.shape[1]:
            total[layer.positions] += _cosines(keys, moments)
            layers += 1
    return (total / max(layers, 1)).clamp(0, 1)


def _cosines(keys: Tensor, moments: QueryStatistics) -> Tensor:
    """Return the mean over KV heads of cosines [T] of keys [H, T, D] and their query heads' mean."""
    wanted = moments.mean.view(len(keys), -1, keys.shape[2]).mean(1)
    return torch.nn.functional.cosine_similarity(keys, wanted[:, None], dim=2).mean(0)
