"""Continuations: what a model says next when it goes on from the exact cache by itself.

Nobody knows how a session will go on. What the model itself thinks likely stands in for it: to tell which cache entries
matter for what comes (`kvcompress.prune.evidence.collect`), and to measure plans before one is committed
(`kvcompress.prune.search`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.families import new_cache
from kvcompress.hf.forward import open_mask, run
from kvcompress.hf.generation import context_limit, resume_start
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
    cache, logits = _at_the_end(model, snapshot)
    cache.batch_repeat_interleave(count)
    generator, logits = torch.Generator().manual_seed(seed), logits.expand(count, -1)
    drawn = []
    for step in range(room):
        odds = torch.softmax(logits.float().cpu(), dim=-1)
        drawn.append(torch.multinomial(odds, 1, generator=generator))
        if step + 1 < room:
            logits = _step(model, cache, drawn[-1], snapshot.origin.next_position + step)
    return torch.cat(drawn, 1)


def _at_the_end(model: CausalLM, snapshot: KVSnapshot) -> tuple[Any, Tensor]:
    """Return a cache of the whole session and the logits [1, V] after its last token."""
    moved = any(
        kind == "sliding_attention" and len(layer.positions) < snapshot.tokens
        for kind, layer in zip(snapshot.origin.layer_kinds, snapshot.layers, strict=True)
    )
    if moved:  # the last token cannot be taken out of a window that has moved on
        cache: Cache = new_cache(model)
        positions = torch.arange(snapshot.tokens)
        return cache, _forward(model, cache, snapshot.token_ids[None], positions[None])
    cache = restore(snapshot, model, check_fingerprint=False)
    places = [layer.positions for layer in snapshot.layers]
    pending, position = resume_start(cache, snapshot.token_ids, layer_positions=places)
    return cache, _forward(model, cache, torch.tensor([pending]), torch.tensor([[position]]))


def _step(model: CausalLM, cache: Cache, ids: Tensor, position: int) -> Tensor:
    return _forward(model, cache, ids, torch.full_like(ids, position))


def _forward(model: CausalLM, cache: Cache, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the logits [B, V] after the last of ids [B, T]."""
    return run(model, ids, cache, position_ids=positions, attention_mask=open_mask(cache, ids))[:, -1]
