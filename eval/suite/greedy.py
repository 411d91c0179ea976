"""Greedy continuations from two caches: where they part, and how close the exact model's choice was there.

A first difference at a near tie is no damage: prefilling in other chunks flips it as well. So it is reported with its
margin and never passes or fails anything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.fidelity import continuation_logits, first_divergence
from kvcompress.resume import context_limit, generate_from


@dataclass(frozen=True, slots=True)
class GreedyReport:
    """Where two greedy continuations part.

    Attributes:
        divergence_tokens: Tokens that agree before the first difference; the whole length where there is none.
        margin_nats: Log-odds between the exact model's first and second choice at the difference; None without one.
    """

    divergence_tokens: int
    margin_nats: float | None


def greedy_divergence(
    model: Any, exact_cache: Any, decoded_cache: Any, token_ids: Tensor, opening: Sequence[int], length_tokens: int
) -> GreedyReport:
    """Continue greedily from both caches and compare; the caches are left as they were.

    Args:
        model: The model of both caches.
        exact_cache: The cache as captured.
        decoded_cache: The cache as decoded, pruned or not.
        token_ids: [N] int64, the session that both stand for.
        opening: What is fed first to both, at least one token: a cache alone holds no prediction.
        length_tokens: Tokens generated, fewer where the model's context ends.
    """
    tokens, limit = len(token_ids), context_limit(model)
    room = length_tokens if limit is None else min(length_tokens, limit - tokens - len(opening) + 1)
    pair = [
        generate_from(model, copy.deepcopy(cache), opening, next_position=tokens, max_new_tokens=room)
        for cache in (exact_cache, decoded_cache)
    ]
    at = first_divergence(*pair)
    if at is None:
        return GreedyReport(room, None)
    fed = torch.tensor([*opening, *pair[0][:at]])
    logits = continuation_logits(model, exact_cache, fed, tokens)[-1].float()
    best, second = logits.topk(2).values.tolist()
    return GreedyReport(at, best - second)
