"""A stored state to a cache that the model goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.assembly import Grow


@dataclass(frozen=True, slots=True, eq=False)
class Resumed:
    """A state to go on from.

    Attributes:
        cache: A `transformers.DynamicCache` on the model's device.
        token_ids: [N] int64, what it has seen.
    """

    cache: Any
    token_ids: Tensor


def resumed(
    snapshot: KVSnapshot, model: CausalLM, tokenizer: Tokenizer | None = None, *, check: bool = True
) -> Resumed:
    """Return the cache of a snapshot; raises as `kvcompress.restore`."""
    cache = restore(snapshot, model, tokenizer=tokenizer, check_fingerprint=check, copy=False)
    return Resumed(cache, snapshot.token_ids)


def grower(model: CausalLM, tokenizer: Tokenizer | None = None) -> Grow:
    """Return what lets a model read the tokens that a snapshot lacks."""

    def grow(snapshot: KVSnapshot | None, token_ids: Tensor) -> KVSnapshot:
        if snapshot is None:
            return capture(model, token_ids, tokenizer=tokenizer)
        cache = restore(snapshot, model, tokenizer=tokenizer)
        feed(model, cache, token_ids[snapshot.tokens :], snapshot.tokens, last_only=True)
        return capture(model, token_ids, tokenizer=tokenizer, cache=cache)

    return grow
