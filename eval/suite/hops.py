"""Drift: a session that is stored, resumed and stored again, many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.fidelity import kl_nats, top_agreement
from kvcompress.hf import capture, restore
from kvcompress.resume import feed
from kvcompress.snapshot import KVSnapshot, LayerKV

Code = Callable[[KVSnapshot], KVSnapshot]
"""Encode to bytes and decode again."""


@dataclass(frozen=True, slots=True)
class Hop:
    """What one hop's tokens look like to a model that was stored and resumed so often.

    Attributes:
        hop: Its number, from 1.
        kl_nats: Mean KL(never interrupted || resumed) over the hop's tokens.
        top1_agreement: Share of them with the same most likely token.
    """

    hop: int
    kl_nats: float
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


def grown(before: KVSnapshot, cache: Any, exact: KVSnapshot) -> KVSnapshot:
    """Return the snapshot of a cache that has gone on from `before`.

    Args:
        before: The snapshot it was restored from; its positions are kept, pruned ones too.
        cache: The live cache, advanced by the tokens that `exact` has more.
        exact: A snapshot of the same tokens, for token ids and the next position.
    """
    layers = []
    for layer, live in zip(before.layers, cache.layers, strict=True):
        new = torch.arange(before.tokens, exact.tokens)
        positions = torch.cat([layer.positions, new])
        layers.append(LayerKV(live.keys[0].clone(), live.values[0].clone(), positions))
    return KVSnapshot(tuple(layers), exact.token_ids, exact.origin)


@torch.no_grad()
def drift(
    model: Any,
    tokenizer: Any,
    code: Code,
    token_ids: Tensor,
    *,
    start_tokens: int,
    hop_tokens: int = 128,
    hops: int = 8,
) -> list[Hop]:
    """Store and resume again and again along a session; as many hops as its tokens allow.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        code: The codec under test.
        token_ids: [N] int64, the session.
        start_tokens: Tokens stored first.
        hop_tokens: Tokens fed between two codings.
        hops: Most hops.
    """
    found: list[Hop] = []
    snapshot = code(capture(model, token_ids[:start_tokens], tokenizer=tokenizer))
    exact_cache: Any = restore(capture(model, token_ids[:start_tokens], tokenizer=tokenizer), model)
    for number in range(1, hops + 1):
        start = start_tokens + (number - 1) * hop_tokens
        part = token_ids[start : start + hop_tokens]
        if len(part) < hop_tokens:
            break
        cache = restore(snapshot, model)
        logits, true = feed(model, cache, part, start), feed(model, exact_cache, part, start)
        found.append(Hop(number, float(kl_nats(true, logits).mean()), top_agreement(true, logits, 1)))
        exact = capture(model, token_ids[: start + hop_tokens], tokenizer=tokenizer)
        snapshot = code(grown(snapshot, cache, exact))
    return found
