"""A session cut in two, with what the exact cache predicts: what every point of the trade-off is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvcompress.hf.capture import capture
from kvcompress.hf.restore import restore
from kvcompress.metrics.fidelity import continuation_logits, kl_nats, short_context_logits
from kvcompress.snapshot import KVSnapshot


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One session.

    Attributes:
        snapshot: Its cache before the continuation.
        continuation: [T] int64, what followed.
        exact: [T, V] float, predictions from the exact cache.
        short_kl_nats: What the context beyond the last 32 tokens is worth.
    """

    snapshot: KVSnapshot
    continuation: Tensor
    exact: Tensor
    short_kl_nats: float


def prepare_trial(model: Any, token_ids: Tensor, continuation_tokens: int, tokenizer: Any = None) -> Trial:
    """Cut a session before its last `continuation_tokens` tokens and measure the exact cache."""
    cut = len(token_ids) - continuation_tokens
    snapshot = capture(model, token_ids[:cut], tokenizer=tokenizer)
    continuation = token_ids[cut:]
    exact = continuation_logits(model, restore(snapshot, model), continuation, cut)
    short = short_context_logits(model, token_ids[:cut], continuation)
    return Trial(snapshot, continuation, exact, float(kl_nats(exact, short).mean()))
