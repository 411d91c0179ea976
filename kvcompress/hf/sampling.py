"""Continuations that a model samples after a session, from its exact cache.

Nobody knows how a session will go on. What the model itself thinks likely stands in for it: to tell which cache entries
matter for what comes (`kvcompress.prune.evidence.collect`), and to measure plans before one is committed
(`kvcompress.prune.search`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import context_limit, feed, feed_rows, resume_start
from kvcompress.hf.restore import restore
from kvcompress.hf.types import Cache, CausalLM
from kvcompress.snapshot import KVSnapshot

CONTINUATIONS = 4
CONTINUATION_TOKENS = 96
LEAST_TOKENS = 16


@torch.no_grad()
def sample_continuations(
    model: CausalLM,
    snapshot: KVSnapshot,
    *,
    count: int = CONTINUATIONS,
    tokens: int = CONTINUATION_TOKENS,
    seed: int = 0,
) -> Tensor:
    """Return [count, tokens] int64: continuations drawn from the model, side by side, at temperature 1.

    Args:
        model: The snapshot's model in evaluation mode.
        snapshot: The exact cache of a session of at least one token.
        count: How many.
        tokens: Length of each; shorter where the model's context ends.
        seed: Of the draws.

    Raises:
        InputError: The session is empty or fills the model's context.
    """
    if not snapshot.tokens:
        raise InputError("an empty session has no future to sample")
    limit = context_limit(model)
    room = tokens if limit is None else min(tokens, limit - snapshot.tokens)
    if room < min(LEAST_TOKENS, tokens):
        what = f"after {snapshot.tokens} tokens the model's context of {limit} leaves no room to sample a future in"
        raise InputError(what, "Use a scorer that needs no sensitivity")
    cache, pending, position = _at_the_end(model, snapshot)
    logits = feed(model, cache, pending, position, last_only=True)
    cache.batch_repeat_interleave(count)
    generator = torch.Generator().manual_seed(seed)
    return draw(model, cache, logits.expand(count, -1), position + len(pending), room, generator)


@torch.no_grad()
def draw(
    model: CausalLM,
    cache: Cache,
    logits: Tensor,
    next_position: int,
    tokens: int,
    generator: torch.Generator,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Return [B, tokens] int64: continuations drawn side by side at temperature 1; the cache is advanced in place.

    Args:
        model: A causal language model in evaluation mode.
        cache: Its cache of B sequences.
        logits: [B, V], what the model predicts next from each.
        next_position: Position of the first token drawn.
        tokens: How many are drawn of each, at least one; the last of them is not fed.
        generator: Source of the draws.
        precision: Data type in which probabilities are computed; another one draws other tokens.
    """
    drawn: list[Tensor] = []
    while True:
        odds = torch.softmax(logits.to(precision).cpu(), dim=-1)
        drawn.append(torch.multinomial(odds, 1, generator=generator))
        if len(drawn) == tokens:
            return torch.cat(drawn, 1)
        logits = feed_rows(model, cache, drawn[-1], next_position + len(drawn) - 1, last_only=True)[:, -1]


def _at_the_end(model: CausalLM, snapshot: KVSnapshot) -> tuple[Cache, Tensor, int]:
    """Return a cache, the tokens [T] that it lacks of the session, at least one, and the position of the first."""
    moved = any(
        kind == "sliding_attention" and len(layer.positions) < snapshot.tokens
        for kind, layer in zip(snapshot.origin.layer_kinds, snapshot.layers, strict=True)
    )
    if moved:  # the last token cannot be taken out of a window that has moved on
        return new_cache(model), snapshot.token_ids, 0
    cache = restore(snapshot, model, check_fingerprint=False)
    places = [layer.positions for layer in snapshot.layers]
    pending, position = resume_start(cache, snapshot.token_ids, layer_positions=places)
    return cache, torch.tensor(pending), position
