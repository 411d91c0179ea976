"""A conversation that keeps its cache: each turn runs the model over the new tokens only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from kvcompress.hf.capture import capture
from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import feed, generate_from
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


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
        if tokens == len(self.seen):
            return tokens
        layers: list[Any] = list(self.cache.layers)
        if any(getattr(layer, "is_sliding", False) for layer in layers):
            self._begin_again()
            return 0
        for layer in layers:
            layer.keys, layer.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]
        self.seen = self.seen[:tokens]
        return tokens

    def _begin_again(self) -> None:
        self.cache, self.seen = new_cache(self.model), []
