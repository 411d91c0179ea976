"""Find the coarsest rate of each quality word: encode, decode, resume, measure, on sessions kept out of the fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec import HIGHEST_RATE, TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.fidelity import (
    MIN_CONTINUATION_TOKENS,
    TIERS,
    Tier,
    continuation_logits,
    kl_nats,
    short_context_logits,
    top_agreement,
)
from kvcompress.hf.capture import capture
from kvcompress.hf.restore import restore
from kvcompress.snapshot import KVSnapshot

MARGIN = 0.7
"""Share of each bound that may be used up here, so that unseen sessions stay within it."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One session cut in two: its cache, what follows, and what the exact cache predicts there."""

    snapshot: KVSnapshot
    continuation: Tensor
    exact: Tensor
    short_kl_nats: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Fidelity of one rate over all trials."""

    kl_nats: float
    context_lost: float
    top1_agreement: float

    def within(self, tier: Tier, margin: float) -> bool:
        """Tell whether a share `margin` of the tier's bounds suffices."""
        return (
            self.kl_nats <= margin * tier.max_kl_nats
            and self.context_lost <= margin * tier.max_context_lost
            and 1 - self.top1_agreement <= margin * (1 - tier.min_top1_agreement)
        )


def prepare_trial(model: Any, token_ids: Tensor, continuation_tokens: int, tokenizer: Any = None) -> Trial:
    """Cut a session before its last `continuation_tokens` tokens and measure the exact cache."""
    cut = len(token_ids) - continuation_tokens
    snapshot = capture(model, token_ids[:cut], tokenizer=tokenizer)
    continuation = token_ids[cut:]
    exact = continuation_logits(model, restore(snapshot, model), continuation, cut)
    short = short_context_logits(model, token_ids[:cut], continuation)
    return Trial(snapshot, continuation, exact, float(kl_nats(exact, short).mean()))


def measure_rate(model: Any, codec: TinyVAECodec, trials: Sequence[Trial], rate: int) -> Measured:
    """Measure a rate: means over sessions, context lost as the ratio of the sums."""
    kl, top1 = [], []
    for trial in trials:
        cache = restore(codec.reconstruct(trial.snapshot, rate), model)
        decoded = continuation_logits(model, cache, trial.continuation, trial.snapshot.tokens)
        kl.append(float(kl_nats(trial.exact, decoded).mean()))
        top1.append(top_agreement(trial.exact, decoded, 1))
    worth = sum(trial.short_kl_nats for trial in trials)
    return Measured(sum(kl) / len(kl), sum(kl) / worth if worth else 0.0, sum(top1) / len(top1))


@torch.inference_mode()
def calibrate_tiers(
    model: Any,
    codec: TinyVAECodec,
    sessions: Sequence[Tensor],
    *,
    tokenizer: Any = None,
    continuation_tokens: int = 192,
    most_sessions: int = 20,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, int]:
    """Return the coarsest rate index of each tier that held on the sessions, by bisection.

    Raises:
        InputError: No session is long enough.
    """
    usable = [s for s in sessions if len(s) >= 2 * MIN_CONTINUATION_TOKENS][:most_sessions]
    if not usable:
        remedy = f"Give sessions of at least {2 * MIN_CONTINUATION_TOKENS} tokens"
        raise InputError("no session is long enough to measure quality tiers on", remedy)
    trials = []
    for done, ids in enumerate(usable, 1):
        trials.append(prepare_trial(model, ids, min(continuation_tokens, len(ids) // 2), tokenizer))
        progress("exact caches", done, len(usable))
    measured: dict[int, Measured] = {}
    tiers: dict[str, int] = {}
    for number, tier in enumerate(TIERS, 1):
        low, high = 0, HIGHEST_RATE // 2  # the tier holds at `high` and above
        while low < high:
            middle = (low + high) // 2
            if middle not in measured:
                measured[middle] = measure_rate(model, codec, trials, middle)
            if measured[middle].within(tier, MARGIN):
                high = middle
            else:
                low = middle + 1
        tiers[tier.name] = low
        progress("tiers", number, len(TIERS))
    return tiers
