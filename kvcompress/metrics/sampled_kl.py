"""Judge: the KL of a decoded cache along continuations that the model samples.

The exact cache's predictions along a few sampled continuations are taken down once; every candidate is then resumed
over the same continuations, side by side, and compared. They are drawn with another seed than those that scorers look
at."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.hf.generation import feed_rows
from kvcompress.hf.restore import restore
from kvcompress.hf.sampling import sample_continuations
from kvcompress.hf.types import Cache, CausalLM
from kvcompress.metrics.fidelity import kl_nats
from kvcompress.snapshot import KVSnapshot

JUDGE_CONTINUATIONS = 4
JUDGE_TOKENS = 64
JUDGE_SEED = 1_000_003


class Judge:
    """Measures candidates of one session.

    Args:
        model: The snapshot's model in evaluation mode.
        snapshot: The exact cache.
        continuations: [B, T] int64; sampled if not given.

    Raises:
        InputError: The session is empty or fills the model's context.
    """

    def __init__(self, model: CausalLM, snapshot: KVSnapshot, continuations: Tensor | None = None) -> None:
        self.model, self.start = model, snapshot.origin.next_position
        if continuations is None:
            continuations = sample_continuations(
                model, snapshot, count=JUDGE_CONTINUATIONS, tokens=JUDGE_TOKENS, seed=JUDGE_SEED
            )
        self.continuations = continuations
        self.exact = self.predictions(snapshot)
        self.measured = 0

    @property
    def tokens(self) -> int:
        """Number of tokens along which candidates are measured."""
        return self.continuations.numel()

    @torch.no_grad()
    def predictions(self, snapshot: KVSnapshot) -> Tensor:
        """Return the logits [B, T, V] along the continuations from a cache, pruned or not."""
        cache: Cache = restore(snapshot, self.model, check_fingerprint=False)
        cache.batch_repeat_interleave(len(self.continuations))
        return feed_rows(self.model, cache, self.continuations, self.start)

    def kl(self, decoded: KVSnapshot) -> float:
        """Return the mean KL(exact || decoded) over all continuations, in nats."""
        self.measured += 1
        found = self.predictions(decoded)
        return float(kl_nats(self.exact.flatten(0, 1), found.flatten(0, 1)).mean())
