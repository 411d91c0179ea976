"""One session made ready: its cache, what follows, and what the exact cache predicts there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.fidelity import continuation_logits, kl_nats, short_context_logits
from kvcompress.hf import capture, restore
from kvcompress.instructions import Rule, count_kept, rules
from kvcompress.recall import Question, answer, is_exact, questions
from kvcompress.sessions import Session
from kvcompress.snapshot import KVSnapshot


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What every codec is measured on.

    Attributes:
        session: Where it comes from.
        snapshot: The exact cache of the stored tokens.
        continuation: [T] int64, what really followed.
        cache: The exact cache in the model's form; never changed.
        exact: [T, V] float logits from it.
        short: [T, V] float logits from the last 32 tokens of context.
        worth_nats: [T] float64 KL(exact || short).
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
    short: Tensor
    worth_nats: Tensor
    questions: tuple[Question, ...]
    recalled: tuple[bool, ...]
    rules: tuple[Rule, ...]
    kept: int
    prefill_seconds: float


def choose_sessions(
    rows: Sequence[tuple[Session, Tensor]], count: int, tokens: int, continuation_tokens: int
) -> tuple[list[tuple[Session, Tensor]], list[Tensor]]:
    """Return the sessions to measure, cut to length, and the token ids of those left for calibration.

    Raises:
        InputError: None is long enough.
    """
    need = tokens + continuation_tokens
    chosen, rest = list[tuple[Session, Tensor]](), list[Tensor]()
    for session, ids in rows:
        if len(ids) >= need and len(chosen) < count:
            chosen.append((session, ids[:need]))
        else:
            rest.append(ids)
    if not chosen:
        longest = max((len(ids) for _, ids in rows), default=0)
        remedy = f"The longest has {longest}; store fewer with --tokens or give longer sessions"
        raise InputError(
            f"no session has the {need} tokens needed ({tokens} stored, then {continuation_tokens})", remedy
        )
    return chosen, rest


@torch.inference_mode()
def prepare(model: Any, tokenizer: Any, session: Session, ids: Tensor, tokens: int) -> Subject:
    """Prefill the first `tokens` tokens of a session and take down everything the codecs are compared with."""
    stored, rest = ids[:tokens], ids[tokens:]
    start = time.perf_counter()
    snapshot = capture(model, stored, tokenizer=tokenizer)
    prefill_seconds = time.perf_counter() - start
    cache = restore(snapshot, model)
    exact = continuation_logits(model, cache, rest, tokens)
    short = short_context_logits(model, stored, rest)
    asked = questions(session, tokenizer, stored.tolist())
    found = rules(session, tokenizer, stored.tolist())
    return Subject(
        session=session,
        snapshot=snapshot,
        continuation=rest,
        cache=cache,
        exact=exact,
        short=short,
        worth_nats=kl_nats(exact, short).cpu(),
        questions=tuple(asked),
        recalled=recalled(model, cache, tokenizer, asked, tokens),
        rules=tuple(found),
        kept=count_kept(model, cache, tokenizer, found, stored),
        prefill_seconds=prefill_seconds,
    )


def recalled(model: Any, cache: Any, tokenizer: Any, asked: Sequence[Question], tokens: int) -> tuple[bool, ...]:
    """Return for each question whether the answer from a cache of `tokens` tokens states the exact value."""
    return tuple(is_exact(answer(model, cache, tokenizer, question, tokens), question.value) for question in asked)
