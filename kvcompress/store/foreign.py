"""What it costs to go on from the cache of other weights, measured on the session itself.

```
tokens     0 ........ N - T | N - T .... N      the last T are held back
foreign    recorded cache   | read by the model at hand
exact      its own cache    | read likewise
```
Both predict the same tokens; their distance is what the other weights' cache costs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.hf.types import CausalLM
from kvcompress.metrics.fidelity import kl_nats, top_agreement
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.segment import part_of

MEASURED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """The distance of a model on a cache of other weights from itself on its own.

    Attributes:
        tokens: Positions that were compared, the last ones of the session.
        kl_nats: Mean KL(own cache || other weights' cache), in nats.
        max_kl_nats: The largest at one position.
        top1_agreement: Share of positions with the same most likely token.
    """

    tokens: int
    kl_nats: float
    max_kl_nats: float
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        return asdict(self)

    def words(self) -> str:
        """Return it in one line."""
        return (
            f"the cache is of other weights: over the last {self.tokens} tokens mean KL {self.kl_nats:.3g} nats (at "
            f"most {self.max_kl_nats:.3g}), the same most likely token at {self.top1_agreement:.1%}"
        )


@torch.no_grad()
def measure(snapshot: KVSnapshot, model: CausalLM, tokens: int = MEASURED_TOKENS) -> Measured:
    """Measure a model on a cache that other weights of its architecture recorded; it reads the whole session once.

    Args:
        snapshot: The session.
        model: The model at hand, in evaluation mode.
        tokens: How many of the last tokens to compare; at most half of the session.

    Raises:
        InputError: The session is too short, or a layer does not hold all of its tokens.
    """
    held_back = min(tokens, snapshot.tokens // 2)
    if held_back < 1:
        raise InputError("a session of one token or none tells nothing about other weights", "Use its own model")
    if any(len(layer.positions) != snapshot.tokens for layer in snapshot.layers):
        what = "other weights cannot be measured on a cache that has let tokens go, by a window or by pruning"
        raise InputError(what, "Use the model that recorded the session")
    start, ids = snapshot.tokens - held_back, snapshot.token_ids
    theirs = restore(part_of(snapshot, 0, start), model, check_fingerprint=False)
    ours = restore(capture(model, ids[:start]), model, copy=False)
    exact, foreign = (feed(model, cache, ids[start:], start) for cache in (ours, theirs))
    apart = kl_nats(exact, foreign)
    return Measured(held_back, float(apart.mean()), float(apart.max()), top_agreement(exact, foreign, 1))
