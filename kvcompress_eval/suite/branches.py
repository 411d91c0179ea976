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

from kvcompress.hf.forward import open_mask, run
from kvcompress.hf.generation import context_limit


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
    for layer in wide.layers:
        if getattr(layer, "keys", None) is not None:
            layer.keys = layer.keys.repeat(rows, 1, 1, 1)
            layer.values = layer.values.repeat(rows, 1, 1, 1)
    return wide


def _feed(model: Any, cache: Any, ids: Tensor, first_position: int) -> Tensor:
    """Feed [B, T] tokens at their original positions, one at a time where layers differ in length."""
    held = {int(layer.get_seq_length()) for layer in cache.layers if getattr(layer, "keys", None) is not None}
    size = ids.shape[1] if len(held) < 2 else 1
    rows = []
    for start in range(0, ids.shape[1], size):
        part = ids[:, start : start + size]
        positions = torch.arange(first_position + start, first_position + start + part.shape[1])
        positions, mask = positions[None].expand(len(ids), -1), open_mask(cache, part)
        rows.append(run(model, part, cache, position_ids=positions, attention_mask=mask))
    return torch.cat(rows, 1)


@torch.no_grad()
def _sample(
    model: Any, cache: Any, tokens: int, opening: Sequence[int], branches: int, length: int, seed: int
) -> Tensor:
    """Return [branches, length] sampled tokens."""
    generator = torch.Generator().manual_seed(seed)
    wide, position = _widened(cache, branches), tokens
    fed = torch.tensor([list(opening)] * branches)
    drawn = []
    for _ in range(length):
        logits = _feed(model, wide, fed, position)[:, -1]
        position += fed.shape[1]
        fed = torch.multinomial(torch.softmax(logits.double().cpu(), -1), 1, generator=generator)
        drawn.append(fed)
    return torch.cat(drawn, 1)


@torch.no_grad()
def _score(model: Any, cache: Any, tokens: int, opening: Sequence[int], rows: Tensor) -> Tensor:
    """Return [branches] log-probabilities of whole branches, float64."""
    start = torch.tensor([list(opening)] * len(rows))
    fed = torch.cat([start, rows[:, :-1]], 1)
    logits = _feed(model, _widened(cache, len(rows)), fed, tokens)[:, start.shape[1] - 1 :]
    chosen = logits.double().log_softmax(-1).cpu().gather(-1, rows[..., None])
    return chosen[..., 0].sum(-1)
