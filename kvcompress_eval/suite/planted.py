"""Facts planted by the suite, where sessions state none: numbers hidden along a session and asked for at its end.

The first tokens of a session, with a few sentences such as "My locker code is 4821." between them, are a session of
their own: it is prefilled, coded and decoded like the others. Each number is asked for in a turn whose answer is begun
("My locker code is"), so that a small model that would ramble is asked for nothing but the digits. Answered is what the
model says greedily: one teacher-forced pass shows whether each token of the number would have been its choice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.sessions import text_ids
from kvcompress.hf import capture, restore
from kvcompress.metrics.fidelity import continuation_logits
from kvcompress.metrics.recall import turn_ids
from kvcompress.snapshot import KVSnapshot

SEED = 11
FACTS = (
    ("My locker code is", "What is my locker code?"),
    ("The flight number was", "What was the flight number?"),
    ("Her house costs", "What does her house cost?"),
    ("They live in room", "Which room do they live in?"),
)
"""How each is stated, a number behind it, and how it is asked for. All stand in one session. Four codes told apart by
one word each are beyond a model of 135 million parameters: it gave 9 of 16 of them, and 18 of 20 of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A planted number, asked for.

    Attributes:
        ids: Tokens that put the question and begin the answer.
        value: Tokens of the number.
        distance_tokens: From the end of the statement to the question.
    """

    ids: tuple[int, ...]
    value: tuple[int, ...]
    distance_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """A session with planted numbers.

    Attributes:
        snapshot: Its exact cache.
        asked: The numbers.
        recalled: For each whether the exact cache gives it.
    """

    snapshot: KVSnapshot
    asked: tuple[Asked, ...]
    recalled: tuple[bool, ...]


@torch.inference_mode()
def planted(model: Any, tokenizer: Any, stored: Tensor, session_id: str) -> Planted | None:
    """Return a session with numbers planted in it, as long as it was; None without a tokenizer or room.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        stored: [N] int64, the session's tokens.
        session_id: Decides the numbers.
    """
    if tokenizer is None:
        return None
    ids, asked = with_numbers(tokenizer, stored, session_id)
    if len(ids) != len(stored):
        return None
    snapshot = capture(model, ids, tokenizer=tokenizer)
    return Planted(snapshot, asked, answers(model, restore(snapshot, model), asked, len(ids)))


def with_numbers(tokenizer: Any, stored: Tensor, session_id: str) -> tuple[Tensor, tuple[Asked, ...]]:
    """Return the tokens of a session with numbers planted evenly in it, cut at its length, and what to ask.

    A statement goes to the next end of a line or sentence. A session too short for all of them comes back empty.
    """
    lot, parts, places = random.Random(f"{SEED} {session_id}"), list[int](), list[tuple[int, str]]()
    stride, taken = len(stored) // (len(FACTS) + 1), 0
    for number, (statement, _) in enumerate(FACTS, 1):
        value = f"{lot.randrange(1000, 10000)}"
        end = _break_after(tokenizer, stored, number * stride, stride // 2)
        parts += [*stored[taken:end].tolist(), *text_ids(tokenizer, f" {statement} {value}.")]
        taken = end
        places.append((len(parts), value))
    if len(parts) > len(stored):
        return stored[:0], ()
    ids = torch.tensor([*parts, *stored[taken:].tolist()][: len(stored)], dtype=torch.int64)
    pairs = zip(FACTS, places, strict=True)
    return ids, tuple(_asked(tokenizer, ids, *fact, value, end) for fact, (end, value) in pairs)


def answers(model: Any, cache: Any, asked: Sequence[Asked], tokens: int) -> tuple[bool, ...]:
    """Return for each number whether a cache of `tokens` tokens gives it; the cache is left as it was."""
    found = []
    for one in asked:
        fed = torch.tensor([*one.ids, *one.value[:-1]])
        logits = continuation_logits(model, cache, fed, tokens)[len(one.ids) - 1 :]
        found.append(logits.argmax(-1).tolist() == list(one.value))
    return tuple(found)


def _break_after(tokenizer: Any, stored: Tensor, start: int, most: int) -> int:
    """Return the first place from `start` on that ends a line or a sentence; `start` where there is none nearby."""
    for place in range(start, min(start + most, len(stored))):
        if tokenizer.decode([int(stored[place - 1])]).rstrip(" ").endswith((".", "\n", "!", "?")):
            return place
    return start


def _asked(tokenizer: Any, ids: Tensor, statement: str, question: str, value: str, end: int) -> Asked:
    if getattr(tokenizer, "chat_template", None):
        turn = turn_ids(tokenizer, question, ids.tolist())
    else:
        turn = text_ids(tokenizer, f"\n\n{question} ")
    return Asked((*turn, *text_ids(tokenizer, statement)), tuple(text_ids(tokenizer, f" {value}")), len(ids) - end)
