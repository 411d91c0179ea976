"""A conversation that keeps its cache: each turn runs the model over the new tokens only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.capture import capture
from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import feed, generate_from
from kvcompress.hf.types import Cache, CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def cut_back(cache: Cache, kept: int, seen: int, layer_positions: Sequence[Tensor] | None = None) -> bool:
    """Take out of a cache, in place, all that came after its first tokens.

    Args:
        cache: A cache of one sequence, pruned or not.
        kept: How many tokens of the session stay.
        seen: How many it has seen.
        layer_positions: For each layer [T] int64, the positions it holds. None: each holds all that it keeps.

    Returns:
        False, the cache as it was, where a layer has already lost what the first tokens need: a sliding window that has
        moved on, or a running state.
    """
    if kept == seen:
        return True
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        moved_on = getattr(layer, "is_sliding", False) and seen > max(layer.sliding_window - 1, 1)
        if not hasattr(layer, "keys") or moved_on:
            return False
    for index, layer in enumerate(layers):
        if layer.keys is None:
            continue
        held = kept if layer_positions is None else int((layer_positions[index] < kept).sum())
        layer.keys, layer.values = layer.keys[..., :held, :], layer.values[..., :held, :]
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = kept
    return True


def turn_start(
    model: CausalLM, snapshot: KVSnapshot, cache: Cache, token_ids: Sequence[int], kept: int
) -> tuple[Cache, list[int], int]:
    """Return the cache to go on from, the tokens to feed and the position of the first of them.

    Args:
        model: The model.
        snapshot: The session that the cache was restored from.
        cache: Its cache, which is cut back.
        token_ids: The whole conversation to go on with.
        kept: How many tokens of the session it begins with; fewer than it has itself.

    Raises:
        InputError: The conversation leaves the session where its cache cannot: a sliding window has moved on, and what
            was dropped beside it is not to be brought back.
    """
    if cut_back(cache, kept, snapshot.tokens, [layer.positions for layer in snapshot.layers]):
        return cache, list(token_ids[kept:]), kept
    kinds = zip(snapshot.origin.layer_kinds, snapshot.layers, strict=True)
    if any(kind == "full_attention" and layer.positions.numel() < snapshot.tokens for kind, layer in kinds):
        what = f"the chat template lays the session out anew from token {kept}, where its sliding windows have moved on"
        raise InputError(what, "Append the prompt as it is with --plain, or store the session without dropping tokens")
    return new_cache(model), list(token_ids), 0


def stop_ids(model: CausalLM, tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that end an answer, by the tokenizer and by what the model says of generation."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(stated if isinstance(stated, list | tuple) else [stated])}
    return {int(token) for token in found if token is not None}


class Conversation:
    """A model, its cache, and the tokens that the cache has seen.

    A chat template may write earlier turns anew once later ones follow. What still reads the same stays; the cache is
    cut back to there, or begun again where a sliding window has moved on.

    Args:
        model: A causal language model in evaluation mode.
    """

    def __init__(self, model: CausalLM) -> None:
        self.model, self.cache = model, new_cache(model)
        self.seen: list[int] = []

    def reply(
        self,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int] = (),
        on_token: Callable[[int], object] | None = None,
    ) -> list[int]:
        """Read the whole conversation so far, as much of it as is new, and return the tokens of the answer.

        Args:
            token_ids: All of it, at least one token.
            max_new_tokens: See `generate_from`, as what follows.
            stop_ids: Tokens that end the answer.
            on_token: Called with each new token but a stopping one.
        """
        kept = self._cut_to(common_prefix(self.seen, token_ids[:-1]))
        try:
            new_ids = generate_from(
                self.model,
                self.cache,
                token_ids[kept:],
                next_position=kept,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                on_token=on_token,
            )
        except BaseException:  # an answer that was interrupted has left tokens in the cache that nobody counted
            self._begin_again()
            raise
        self.seen = [*token_ids, *new_ids[:-1]] if new_ids else list(token_ids[:kept])
        return new_ids

    def snapshot(self, token_ids: Sequence[int], tokenizer: Tokenizer | None = None) -> KVSnapshot:
        """Return the cache after these tokens, which begin as the conversation does."""
        kept = self._cut_to(common_prefix(self.seen, token_ids))
        if kept < len(token_ids):
            feed(self.model, self.cache, torch.tensor(list(token_ids[kept:])), kept, last_only=True)
        self.seen = list(token_ids)
        return capture(self.model, token_ids, tokenizer=tokenizer, cache=self.cache)

    def _cut_to(self, tokens: int) -> int:
        """Cut the cache back to its first tokens, or begin a new one; return how many it holds."""
        if not cut_back(self.cache, tokens, len(self.seen)):
            self._begin_again()
            return 0
        self.seen = self.seen[:tokens]
        return tokens

    def _begin_again(self) -> None:
        self.cache, self.seen = new_cache(self.model), []
