"""Sampled continuations from two caches: how far apart the distributions of whole continuations are.

A mean KL along the true tokens says nothing about where the model itself would go. Branches are sampled from both
caches, and every branch is scored under both. With p and q the probabilities of whole branches and m their mean, the
Jensen-Shannon divergence (Lin, 1991) is (E_p[log p/m] + E_q[log q/m]) / 2: 0 for equal distributions, ln 2 for
disjoint ones. The estimate from n branches of each side is unbiased and may so fall below 0; it is floored there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.hf.generation import context_limit, feed_rows
from kvcompress.hf.sampling import draw


@dataclass(frozen=True, slots=True)
class BranchReport:
    """Distance of two distributions of continuations.

    Attributes:
        jensen_shannon_nats: Estimated Jensen-Shannon divergence, 0 to ln 2.
        exact_to_decoded_nats: Estimated KL(exact || decoded) of whole branches.
        length_tokens: Tokens of a branch.
    """

    jensen_shannon_nats: float
    exact_to_decoded_nats: float
    length_tokens: int


def branch_divergence(
    model: Any,
    exact_cache: Any,
    decoded_cache: Any,
    token_ids: Tensor,
    opening: Sequence[int],
    *,
    branches: int = 8,
    length_tokens: int = 24,
    seed: int = 0,
) -> BranchReport:
    """Sample branches from both caches and compare them; the caches are left as they were.

    Args:
        model: The model of both caches.
        exact_cache: The cache as captured.
        decoded_cache: The cache as decoded, pruned or not.
        token_ids: [N] int64, the session that both stand for.
        opening: What is fed first to both, at least one token.
        branches: Branches sampled from each cache.
        length_tokens: Tokens of a branch, fewer where the model's context ends.
        seed: Both sides draw with the same seed.
    """
    tokens, limit = len(token_ids), context_limit(model)
    length = length_tokens if limit is None else min(length_tokens, limit - tokens - len(opening) + 1)
    caches = exact_cache, decoded_cache
    drawn = [_sample(model, cache, tokens, opening, branches, length, seed) for cache in caches]
    scores = [[_score(model, cache, tokens, opening, rows) for cache in caches] for rows in drawn]
    (exact_own, exact_other), (decoded_other, decoded_own) = scores
    return BranchReport(
        jensen_shannon_nats=jensen_shannon_nats(exact_own, exact_other, decoded_own, decoded_other),
        exact_to_decoded_nats=float((exact_own - exact_other).mean()),
        length_tokens=length,
    )


def jensen_shannon_nats(p_own: Tensor, p_other: Tensor, q_own: Tensor, q_other: Tensor) -> float:
    """Return the estimated Jensen-Shannon divergence in nats.

    Args:
        p_own: [n] log p of branches drawn from p.
        p_other: [n] log q of the same branches.
        q_own: [n] log q of branches drawn from q.
        q_other: [n] log p of the same branches.
    """
    halves = [
        (own - torch.logaddexp(own, other) + math.log(2)).double().mean()
        for own, other in ((p_own, p_other), (q_own, q_other))
    ]
    return max(0.0, float(sum(halves)) / 2)


def _widened(cache: Any, rows: int) -> Any:
    """Return a copy of a cache of one sequence, repeated along the batch."""
    wide = copy.deepcopy(cache)
    wide.batch_repeat_interleave(rows)
    return wide


@torch.no_grad()
def _sample(
    model: Any, cache: Any, tokens: int, opening: Sequence[int], branches: int, length: int, seed: int
) -> Tensor:
    """Return [branches, length] sampled tokens."""
    wide, fed = _widened(cache, branches), torch.tensor([list(opening)] * branches)
    logits = feed_rows(model, wide, fed, tokens, last_only=True)[:, -1]
    generator = torch.Generator().manual_seed(seed)
    return draw(model, wide, logits, tokens + len(opening), length, generator, torch.float64)


@torch.no_grad()
def _score(model: Any, cache: Any, tokens: int, opening: Sequence[int], rows: Tensor) -> Tensor:
    """Return [branches] log-probabilities of whole branches, float64."""
    start = torch.tensor([list(opening)] * len(rows))
    fed = torch.cat([start, rows[:, :-1]], 1)
    logits = feed_rows(model, _widened(cache, len(rows)), fed, tokens)[:, start.shape[1] - 1 :]
    chosen = logits.double().log_softmax(-1).cpu().gather(-1, rows[..., None])
    return chosen[..., 0].sum(-1)
