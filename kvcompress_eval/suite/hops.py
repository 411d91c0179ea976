"""Drift: a session that is saved, resumed, gone on with and saved again, many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.subject import context_worth

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


@dataclass(frozen=True, slots=True, eq=False)
class Journey:
    """A session cut into what is stored first and what each hop goes on with.

    Attributes:
        token_ids: [N] int64, the session.
        start_tokens: Tokens stored first.
        hop_tokens: Tokens fed between two codings.
        hops: Most hops.
    """

    token_ids: Tensor
    start_tokens: int
    hop_tokens: int
    hops: int

    @classmethod
    def over(cls, token_ids: Tensor, hops: int, start_tokens: int, hop_tokens: int) -> Journey:
        """Return so many hops that end with the session: shorter ones where it is short, else with a later start.

        Args:
            token_ids: [N] int64.
            hops: How many.
            start_tokens: Least tokens stored first, at most half of the session.
            hop_tokens: Most tokens of a hop.
        """
        least = min(start_tokens, len(token_ids) // 2)
        size = max(1, min(hop_tokens, (len(token_ids) - least) // hops))
        return cls(token_ids, max(least, len(token_ids) - hops * size), size, hops)

    def parts(self) -> Iterator[tuple[int, Tensor]]:
        """Yield for each hop that the session has tokens for its start and its tokens [hop_tokens]."""
        for number in range(self.hops):
            start = self.start_tokens + number * self.hop_tokens
            if start + self.hop_tokens > len(self.token_ids):
                return
            yield start, self.token_ids[start : start + self.hop_tokens]


def grown(before: KVSnapshot, cache: Any, token_ids: Tensor) -> KVSnapshot:
    """Return the snapshot of a cache that has gone on from `before`.

    Args:
        before: The snapshot it was restored from; its positions are kept, pruned ones too.
        cache: The live cache, advanced by the tokens that `token_ids` has more.
        token_ids: [N] int64, every token seen by now.
    """
    layers = []
    for layer, live in zip(before.layers, cache.layers, strict=True):
        positions = torch.cat([layer.positions, torch.arange(before.tokens, len(token_ids))])
        held = live.keys.shape[2]  # a sliding window has dropped its oldest
        layers.append(LayerKV(live.keys[0].clone(), live.values[0].clone(), positions[len(positions) - held :]))
    return KVSnapshot(tuple(layers), token_ids, replace(before.origin, next_position=len(token_ids)))


@torch.no_grad()
def drift(model: Any, tokenizer: Any, code: Code, journey: Journey) -> list[Hop]:
    """Store and resume again and again along a session; as many hops as its tokens allow.

    Each hop's predictions are compared with those of the model that was never interrupted.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        code: The codec under test.
        journey: The session's way.
    """
    found: list[Hop] = []
    opening = capture(model, journey.token_ids[: journey.start_tokens], tokenizer=tokenizer)
    uninterrupted, snapshot = restore(opening, model), code(opening)
    for number, (start, part) in enumerate(journey.parts(), 1):
        cache = restore(snapshot, model)
        true = torch.log_softmax(feed(model, uninterrupted, part, start).float(), -1)
        moved = damage(true, feed(model, cache, part, start))
        found.append(Hop(number, float(moved.kl_nats.mean()), float(moved.same.double().mean())))
        snapshot = code(grown(snapshot, cache, journey.token_ids[: start + len(part)]))
    return found


@torch.inference_mode()
def hop_worths(model: Any, tokenizer: Any, journey: Journey, stride: int) -> list[float]:
    """Return for each hop what the context before it is worth over its tokens, in nats.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        journey: The session's way.
        stride: It is measured at every so many-th position.
    """
    cache = restore(capture(model, journey.token_ids[: journey.start_tokens], tokenizer=tokenizer), model)
    found = []
    for start, part in journey.parts():
        exact = torch.log_softmax(feed(model, cache, part, start).float(), -1)
        found.append(float(context_worth(model, journey.token_ids[:start], part, exact, stride).mean()))
    return found
