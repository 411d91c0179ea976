"""Keep the tokens whose keys are short: the scorer `key_norm` of `kvcompress.prune`, chosen layer by layer.

The norm alone often drops the newest tokens, without which nothing can be continued, so there is a second family that
is not in the paper: a quarter of what is kept are the newest tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.prune.scorers.key_norm import layer_scores
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.eviction import points
from kvcompress_eval.baselines.protocol import Baseline, Calibration

RECENT_SHARE = 0.25


class KeyNorm:
    """The shorter the key, the more it is worth.

    Args:
        recent_share: Share of the kept tokens that are the newest, whatever their keys; 0 is the paper's form.
    """

    def __init__(self, recent_share: float = 0.0) -> None:
        self.recent_share = recent_share
        self.name = "key-norm-recent" if recent_share else "key-norm"

    def score(self, snapshot: KVSnapshot, kept_tokens: int) -> list[Tensor]:
        """Return minus the mean norm of each token's keys, infinity for those that stay as the newest."""
        scores = layer_scores(snapshot)
        for score in scores:
            score[len(score) - int(self.recent_share * kept_tokens) :] = torch.inf
        return scores


def family(calibration: Calibration) -> list[Baseline]:
    """Return both forms at each keep fraction; there is nothing to learn."""
    return [*points(KeyNorm()), *points(KeyNorm(RECENT_SHARE))]
