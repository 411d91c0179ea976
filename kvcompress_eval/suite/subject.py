"""One session made ready: its cache, what follows, and what the exact cache predicts there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.sessions import Session
from kvcompress.hf import capture, restore
from kvcompress.metrics.fidelity import SHORT_CONTEXT_TOKENS, continuation_logits, short_context_logits
from kvcompress.metrics.instructions import Rule, count_kept, rules
from kvcompress.metrics.recall import Question, answer, is_exact, questions
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.suite.damage import damage


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What every codec is measured on.

    Attributes:
        session: Where it comes from.
        snapshot: The exact cache of the stored tokens.
        continuation: [T] int64, what really followed.
        cache: The exact cache in the model's form; never changed.
        exact: [T, V] float32 log-probabilities from it.
        worth_nats: [ceil(T / worth_stride)] float64 KL(exact || last 32 tokens of context only).
        worth_stride: At every so many-th position.
        questions: Planted facts that can be asked after the stored tokens.
        recalled: For each of them whether the exact cache answers it.
        rules: Standing instructions given within the stored tokens.
        kept: How many of their checks the exact cache keeps.
        prefill_seconds: Of the stored tokens.
    """

    session: Session
    snapshot: KVSnapshot
    continuation: Tensor
    cache: Any
    exact: Tensor
    worth_nats: Tensor
    worth_stride: int
    questions: tuple[Question, ...]
    recalled: tuple[bool, ...]
    rules: tuple[Rule, ...]
    kept: int
    prefill_seconds: float


@torch.inference_mode()
def prepare(model: Any, tokenizer: Any, session: Session, ids: Tensor, tokens: int, worth_stride: int = 1) -> Subject:
    """Prefill the first `tokens` tokens of a session and take down everything the codecs are compared with."""
    stored, rest = ids[:tokens], ids[tokens:]
    start = time.perf_counter()
    snapshot = capture(model, stored, tokenizer=tokenizer)
    prefill_seconds = time.perf_counter() - start
    cache = restore(snapshot, model)
    exact = log_probabilities(model, cache, rest, tokens)
    asked = questions(session, tokenizer, stored.tolist())
    found = rules(session, tokenizer, stored.tolist())
    return Subject(
        session=session,
        snapshot=snapshot,
        continuation=rest,
        cache=cache,
        exact=exact,
        worth_nats=context_worth(model, stored, rest, exact, worth_stride),
        worth_stride=worth_stride,
        questions=tuple(asked),
        recalled=recalled(model, cache, tokenizer, asked, tokens),
        rules=tuple(found),
        kept=count_kept(model, cache, tokenizer, found, stored),
        prefill_seconds=prefill_seconds,
    )


def log_probabilities(model: Any, cache: Any, ids: Tensor, first_position: int) -> Tensor:
    """Return log-probabilities [T, V] float32 after each of some tokens [T]; the cache is left as it was."""
    return torch.log_softmax(continuation_logits(model, cache, ids, first_position).float(), -1)


def context_worth(model: Any, stored: Tensor, following: Tensor, exact: Tensor, stride: int) -> Tensor:
    """Return what the context beyond the last 32 tokens is worth, in nats, at every `stride`-th following token.

    Args:
        model: The model.
        stored: [N] int64, the session.
        following: [T] int64.
        exact: [T, V] float32 log-probabilities with the whole context.
        stride: Each position takes a pass over a window of its own.

    Returns:
        [ceil(T / stride)] float64.
    """
    short = short_context_logits(model, stored, following, SHORT_CONTEXT_TOKENS, every=stride)
    return damage(exact[::stride], short).kl_nats.cpu()


def recalled(model: Any, cache: Any, tokenizer: Any, asked: Sequence[Question], tokens: int) -> tuple[bool, ...]:
    """Return for each question whether the answer from a cache of `tokens` tokens states the exact value."""
    return tuple(is_exact(answer(model, cache, tokenizer, question, tokens), question.value) for question in asked)
