"""A cache that knows whose session it holds: which tokens, and which of its entries were restored from a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class SessionCache(DynamicCache):
    """A `DynamicCache` of one session.

    What is fed through `kvcompress.hf` is noted; what a caller runs by `model(...)` or `model.generate` is not:
    `token_ids` then ends before the cache does.

    Attributes:
        token_ids: Tokens that were fed or restored, from the session's first on.
        restored_tokens: How many of them came with a snapshot and are still there; 0 for a cache that the model filled.
        restored_positions: For each layer [T] int64, the positions that the snapshot held; empty without one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.token_ids: list[int] = []
        self.restored_tokens = 0
        self.restored_positions: tuple[Tensor, ...] = ()

    def note_restored(self, token_ids: Tensor, positions: Sequence[Tensor]) -> None:
        """Note what a snapshot put in: token ids [N] and for each layer its positions [T]."""
        self.token_ids = token_ids.tolist()
        self.restored_tokens, self.restored_positions = len(self.token_ids), tuple(positions)

    def note_fed(self, token_ids: Tensor, first_position: int) -> None:
        """Note tokens [T] that were fed from a position of the session on; what stood there before was cut off."""
        self.restored_tokens = min(self.restored_tokens, first_position)
        if first_position <= len(self.token_ids):
            self.token_ids = [*self.token_ids[:first_position], *token_ids.tolist()]

    def begin_again(self, empty: DynamicCache) -> None:
        """Become an empty cache, in place: whoever holds this one goes on with it."""
        self.layers = empty.layers
        self.token_ids, self.restored_tokens, self.restored_positions = [], 0, ()

    def positions_of(self, layer: int, entries: int, tokens: int) -> Tensor | None:
        """Return the positions [entries] of a layer of full attention after `tokens` tokens, None if none fit.

        What a snapshot put in comes first, what was fed since follows without a gap. Going on without a prompt feeds
        the session's last token once more, whether or not the layer still held it.
        """
        if not self.restored_positions:
            return torch.arange(tokens) if entries == tokens else None
        restored = min(self.restored_tokens, tokens)  # fewer where the session was cut back
        for start in (restored, restored - 1):
            kept = self.restored_positions[layer]
            kept = kept[kept < start]
            if len(kept) + tokens - start == entries:
                return torch.cat([kept, torch.arange(start, tokens)])
        return None
