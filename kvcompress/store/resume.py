"""A stored state to a cache that the model goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.hf.origin_check import require_consistent, require_shapes
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.assembly import Grow
from kvcompress.store.foreign import Measured, measure
from kvcompress.store.identity import ALLOWED, DEGRADED, DIGESTS, Compatibility, Field, Identity, compare


@dataclass(frozen=True, slots=True, eq=False)
class Resumed:
    """A state to go on from.

    Attributes:
        cache: A `transformers.DynamicCache` on the model's device.
        token_ids: [N] int64, what it has seen.
        compatibility: How the model compares with the one that recorded it; None where that was not asked.
        measured: What other weights cost, None where they are the same.
        conversation: What was said, as the session's origin keeps it; None where its tokens tell.
    """

    cache: Any
    token_ids: Tensor
    compatibility: Compatibility | None = None
    measured: Measured | None = None
    conversation: Mapping[str, Any] | None = None


def resumed(
    snapshot: KVSnapshot,
    model: CausalLM,
    tokenizer: Tokenizer | None = None,
    *,
    check: bool = True,
    other_weights: bool = False,
) -> Resumed:
    """Return the cache of a snapshot.

    Args:
        snapshot: The state.
        model: The model that goes on from it.
        tokenizer: Compared with the recording one where both are known.
        check: Refuse any other model.
        other_weights: Take other weights, and measure what they cost.

    Raises:
        MismatchError: Anything differs that may not.
        InputError: Other weights cannot be measured on this session.
    """
    found = measured = None
    if check:
        recorded = Identity.of_origin(snapshot.origin)
        found = compare(recorded, Identity.of_model(model, tokenizer, recorded), other_weights=other_weights)
        found.require()
        require_consistent(snapshot.origin)
        require_shapes(snapshot, model)
        if {one.name for one in found.fields if one.verdict == DEGRADED} & {"weights", "adapter"}:
            measured = measure(snapshot, model)
    exact = found is not None and all(map(_is_same, found.fields))
    cache = restore(snapshot, model, tokenizer=tokenizer, check_fingerprint=exact, copy=False)
    return Resumed(cache, snapshot.token_ids, found, measured, snapshot.origin.conversation)


def _is_same(one: Field) -> bool:
    """Tell whether the digests of a field, if it has any, are equal or not known on both sides."""
    unknown = not one.recorded or not one.at_hand
    return one.name not in DIGESTS or (one.verdict == ALLOWED and (unknown or one.recorded == one.at_hand))


def grower(model: CausalLM, tokenizer: Tokenizer | None = None) -> Grow:
    """Return what lets a model read the tokens that a snapshot lacks."""

    def grow(snapshot: KVSnapshot | None, token_ids: Tensor) -> KVSnapshot:
        if snapshot is None:
            return capture(model, token_ids, tokenizer=tokenizer)
        cache = restore(snapshot, model, tokenizer=tokenizer)
        feed(model, cache, token_ids[snapshot.tokens :], snapshot.tokens, last_only=True)
        return capture(model, token_ids, tokenizer=tokenizer, cache=cache)

    return grow
