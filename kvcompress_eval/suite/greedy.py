"""The greedy path of the exact cache, and how far a decoded one follows it.

The path is generated once a session. Another cache follows it as long as its own most likely token is the path's, which
one teacher-forced pass along the path shows. A first difference at a near tie is no damage: prefilling in other chunks
flips it as well. So it is reported with its margin, and no tier depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.hf.generation import context_limit, generate_from
from kvcompress.metrics.fidelity import continuation_logits


@dataclass(frozen=True, slots=True)
class GreedyPath:
    """What the exact cache says, token by token.

    Attributes:
        opening: Tokens fed first, at least one: a cache alone holds no prediction.
        tokens: The most likely token after them, and so on.
        margins_nats: Log-odds between each of them and the second choice.
        position: Of the first token of the opening.
    """

    opening: tuple[int, ...]
    tokens: tuple[int, ...]
    margins_nats: tuple[float, ...]
    position: int


@dataclass(frozen=True, slots=True)
class GreedyReport:
    """Where two greedy continuations part.

    Attributes:
        divergence_tokens: Tokens that agree before the first difference; the whole length where there is none.
        margin_nats: Log-odds between the exact model's first and second choice at the difference; None without one.
    """

    divergence_tokens: int
    margin_nats: float | None


@torch.no_grad()
def greedy_path(model: Any, cache: Any, tokens: int, opening: Sequence[int], length_tokens: int) -> GreedyPath:
    """Continue greedily from a cache, which is left as it was.

    Args:
        model: The cache's model.
        cache: The exact cache.
        tokens: That it stands for.
        opening: What is fed first, at least one token.
        length_tokens: Tokens generated, fewer where the model's context ends.
    """
    limit = context_limit(model)
    room = length_tokens if limit is None else min(length_tokens, limit - tokens - len(opening) + 1)
    fed = tuple(map(int, opening))
    if room < 1:
        return GreedyPath(fed, (), (), tokens)
    margins: list[float] = []

    def note(logits: Tensor) -> None:
        first, second = logits.float().topk(2).values.tolist()
        margins.append(first - second)

    live = copy.deepcopy(cache)
    path = generate_from(model, live, fed, next_position=tokens, max_new_tokens=room, on_logits=note)
    return GreedyPath(fed, tuple(path), tuple(margins), tokens)


@torch.no_grad()
def follow(model: Any, cache: Any, path: GreedyPath) -> GreedyReport:
    """Return how far a cache follows a path; the cache is left as it was.

    Args:
        model: The model of both.
        cache: The cache as decoded, pruned or not.
        path: Of the exact cache.
    """
    fed = torch.tensor([*path.opening, *path.tokens[:-1]])
    logits = continuation_logits(model, cache, fed, path.position)[len(path.opening) - 1 :]
    differs = logits.argmax(-1).cpu() != torch.tensor(path.tokens)
    if not bool(differs.any()):
        return GreedyReport(len(path.tokens), None)
    at = int(differs.int().argmax())
    return GreedyReport(at, path.margins_nats[at])
