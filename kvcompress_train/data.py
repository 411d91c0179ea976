"""What training reads: whole sessions from the shards of a harvest, cut anew in every epoch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcompress.data.shards import Shards
from kvcompress.rate.max_kl import cut
from kvcompress.snapshot import KVSnapshot

SHORTEST_SHARE = 0.5
"""A cut keeps at least so much of the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedSession:
    """A cache and what followed it.

    Attributes:
        snapshot: The exact cache of N tokens.
        continuation: [T] int64.
    """

    snapshot: KVSnapshot
    continuation: Tensor


class ShardSessions(torch.utils.data.Dataset[CachedSession]):
    """The sessions of a part of a harvest, read from disk one at a time; those that nothing followed are left out.

    Args:
        shards: The part.
        continuation_tokens: Tokens that follow, at most.
        seed: Of the cuts; epochs differ. None leaves sessions as they were harvested.

    Attributes:
        epoch: Set before each epoch.
    """

    def __init__(self, shards: Shards, continuation_tokens: int, seed: int | None = None) -> None:
        self.shards, self.continuation_tokens, self.seed, self.epoch = shards, continuation_tokens, seed, 0
        self.numbers = [number for number, row in enumerate(shards.rows) if row.continuation and row.tokens]

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.numbers)

    def __getitem__(self, index: int) -> CachedSession:
        """Return a session, half of the time cut at a random place.

        A cache entry depends on no later token, so a shard holds the caches of all its beginnings, each with the text
        that really followed, and no pass of the model is needed for them. A window that has moved on cannot be cut.
        """
        number = self.numbers[index]
        snapshot, after = self.shards.snapshot(number), self.shards.continuation(number)
        chance = random.Random(f"{self.seed}:{self.epoch}:{index}")
        if self.seed is not None and chance.random() < 0.5 and "sliding_attention" not in snapshot.origin.layer_kinds:
            at = chance.randint(max(1, round(SHORTEST_SHARE * snapshot.tokens)), snapshot.tokens)
            after = torch.cat([snapshot.token_ids[at:], after])
            snapshot = cut(snapshot, at)
        return CachedSession(snapshot, after[: self.continuation_tokens])
