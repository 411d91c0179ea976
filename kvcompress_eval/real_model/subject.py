"""A session cut in two, and what the model says after the cut from the exact cache: taken once for all codecs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.fit.trials import WORTH_STRIDE
from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.metrics.fidelity import SHORT_CONTEXT_TOKENS, short_context_logits
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.suite.chosen import Chosen, choose_sessions
from kvcompress_eval.suite.damage import NEAR_TOKENS, damage


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A session made ready.

    Attributes:
        chosen: Which it is.
        snapshot: The exact cache of the stored tokens.
        exact: [T, V] float32 log-probabilities from it after each following token.
        worth_near_nats: What the context beyond the last 32 tokens is worth over the first 128 following tokens.
        worth_far_nats: Over all of them.
        prefill_seconds: Of the stored tokens, once.
    """

    chosen: Chosen
    snapshot: KVSnapshot
    exact: Tensor
    worth_near_nats: float
    worth_far_nats: float
    prefill_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what every row says of its session."""
        return {
            "source": self.chosen.source,
            "session": self.chosen.session.id,
            "category": self.chosen.session.category,
            "tokens": self.snapshot.tokens,
            "raw_bytes": self.snapshot.raw_bytes,
            "worth_near_nats": self.worth_near_nats,
            "worth_far_nats": self.worth_far_nats,
        }


def choose(
    model: Any, tokenizer: Any, source: str, path: Path, count: int, tokens: int, following: int
) -> list[Chosen]:
    """Return the first sessions of a file that are long enough.

    Raises:
        InputError: None is, or the continuation is shorter than the bounds ask for.
    """
    if following < NEAR_TOKENS:
        raise InputError(f"a continuation of {following} tokens is shorter than the {NEAR_TOKENS} of the bounds")
    rows = tokenized_sessions(model, tokenizer, path)
    chosen, _ = choose_sessions(rows, count, tokens, following)
    return [Chosen(session, ids[:tokens], ids[tokens:], source) for session, ids in chosen]


@torch.inference_mode()
def prepare(model: Any, tokenizer: Any, chosen: Chosen, worth_nats: tuple[float, float] | None = None) -> Subject:
    """Capture a session's cache and what the model says from it.

    What the context is worth is measured at every eighth position: each needs a pass over a window of its own.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        chosen: The session.
        worth_nats: What its context is worth, over the first following tokens and over all, where that is known.
    """
    start = time.perf_counter()
    snapshot = capture(model, chosen.stored, tokenizer=tokenizer)
    seconds = time.perf_counter() - start
    logits = feed(model, restore(snapshot, model), chosen.following, snapshot.tokens)
    exact = torch.log_softmax(logits.float(), -1)
    return Subject(chosen, snapshot, exact, *(worth_nats or _worth_nats(model, chosen, exact)), seconds)


def _worth_nats(model: Any, chosen: Chosen, exact: Tensor) -> tuple[float, float]:
    short = short_context_logits(model, chosen.stored, chosen.following, SHORT_CONTEXT_TOKENS, every=WORTH_STRIDE)
    worth = damage(exact[::WORTH_STRIDE], short).kl_nats
    return float(worth[: NEAR_TOKENS // WORTH_STRIDE].mean()), float(worth.mean())
