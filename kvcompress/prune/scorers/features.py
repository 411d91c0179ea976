"""Features of each token for learned scorers, each as a rank in [0, 1] within its session.

Ranks, for they mean the same in every session and model: which share of the tokens has less of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvcompress.prune.evidence.key_similarity import novelty, similarity
from kvcompress.prune.evidence.record import (
    QUERIES,
    RECONSTRUCTION,
    SENSITIVITY,
    SURPRISE,
    WINDOW_ATTENTION,
    Evidence,
    ranks,
)
from kvcompress.prune.scorers.attention_mass import SCORER as ATTENTION_MASS
from kvcompress.prune.scorers.context_reconstruction import SCORER as RECONSTRUCTED
from kvcompress.prune.scorers.expected_attention import SCORER as EXPECTED_ATTENTION
from kvcompress.prune.scorers.key_difference import SCORER as KEY_DIFFERENCE
from kvcompress.prune.scorers.key_norm import SCORER as KEY_NORM
from kvcompress.prune.scorers.value_norm import SCORER as VALUE_NORM

NEEDS = (SURPRISE, WINDOW_ATTENTION, QUERIES, RECONSTRUCTION, SENSITIVITY)

LAST_AGE_OCTAVES = 16.0
"""Ages are said by their logarithm, as a share of this."""


def received(evidence: Evidence) -> Tensor:
    """Return [N] float32: attention that the last queries pay to each token, mean over layers and heads, unsmoothed."""
    return torch.stack([mass.float().mean(0) for mass in evidence.require_window_attention()]).mean(0)


def conflict(evidence: Evidence) -> Tensor:
    """Return [N] float32: how much layers and heads disagree about a token: deviation of the log of their attention."""
    masses = torch.cat([mass.float() for mass in evidence.require_window_attention()])
    logs = torch.log(masses.clamp(min=1e-9))
    return logs.std(0) if len(masses) > 1 and masses.numel() else torch.zeros(evidence.tokens, dtype=torch.float32)


def following(score: Tensor) -> Tensor:
    """Return the highest score [N] of each token and its three neighbours on either side."""
    if not len(score):
        return score
    return torch.nn.functional.max_pool1d(score[None], 7, 1, 3)[0]


FEATURES: dict[str, Callable[[Evidence], Tensor]] = {
    "sensitivity": lambda e: ranks(e.require_sensitivity()),
    "sensitivity_near": lambda e: ranks(following(e.require_sensitivity())),
    "reconstruction": lambda e: ranks(RECONSTRUCTED.score(e)),
    "reconstruction_near": lambda e: ranks(following(RECONSTRUCTED.score(e))),
    "surprise": lambda e: ranks(e.require_surprise()),
    "received": lambda e: ranks(received(e)),
    "attention_mass": lambda e: ranks(ATTENTION_MASS.score(e)),
    "expected_attention": lambda e: ranks(EXPECTED_ATTENTION.score(e)),
    "conflict": lambda e: ranks(conflict(e)),
    "novelty": lambda e: ranks(novelty(e)),
    "similarity": lambda e: ranks(similarity(e)),
    "key_norm": lambda e: ranks(KEY_NORM.score(e)),
    "value_norm": lambda e: ranks(VALUE_NORM.score(e)),
    "key_difference": lambda e: ranks(KEY_DIFFERENCE.score(e)),
    "age": lambda e: torch.log2(torch.arange(e.tokens, 0, -1).float()) / LAST_AGE_OCTAVES,
}


def features(evidence: Evidence) -> Tensor:
    """Return [N, F] float32, a column for each of `FEATURES`."""
    return torch.stack([column(evidence) for column in FEATURES.values()], 1)
