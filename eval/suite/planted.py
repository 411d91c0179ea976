"""Facts planted by the suite, where sessions state none: codes hidden along a session and asked for at its end.

The first tokens of a session, with a few sentences such as "The amber code is 4821." between them, are a session of
their own: it is prefilled, coded and decoded like the others. Each code is asked for in a turn whose answer is begun
("The amber code is"), so that a small model that would ramble is asked for nothing but the digits. Answered is what the
model says greedily: one teacher-forced pass shows whether each token of the code would have been its choice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.fidelity import continuation_logits
from kvcompress.hf import capture, restore
from kvcompress.recall import turn_ids
from kvcompress.sessions import text_ids
from kvcompress.snapshot import KVSnapshot

SEED = 11
NAMES = ("amber", "cedar", "harbour", "violet")
"""One code each; all stand in one session, so that the right one has to be told from the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A planted code, asked for.

    Attributes:
        ids: Tokens that put the question and begin the answer.
        value: Tokens of the code.
        distance_tokens: From the end of the statement to the question.
    """

    ids: tuple[int, ...]
    value: tuple[int, ...]
    distance_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """A session with planted codes.

    Attributes:
        snapshot: Its exact cache.
        asked: The codes.
        recalled: For each whether the exact cache gives it.
    """

    snapshot: KVSnapshot
    asked: tuple[Asked, ...]
    recalled: tuple[bool, ...]


@torch.inference_mode()
def planted(model: Any, tokenizer: Any, stored: Tensor, session_id: str) -> Planted | None:
    """Return a session with codes planted in it, as long as it was; None without a tokenizer or room.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        stored: [N] int64, the session's tokens.
        session_id: Decides the codes.
    """
    if tokenizer is None:
        return None
    ids, asked = with_codes(tokenizer, stored, session_id)
    if len(ids) != len(stored):
        return None
    snapshot = capture(model, ids, tokenizer=tokenizer)
    return Planted(snapshot, asked, answers(model, restore(snapshot, model), asked, len(ids)))


def with_codes(tokenizer: Any, stored: Tensor, session_id: str) -> tuple[Tensor, tuple[Asked, ...]]:
    """Return the tokens of a session with codes planted evenly in it, cut at its length, and what to ask.

    A statement goes to the next end of a line or sentence. A session too short for all of them comes back shorter.
    """
    lot, parts, places = random.Random(f"{SEED} {session_id}"), list[int](), dict[str, tuple[int, str]]()
    stride, taken = len(stored) // (len(NAMES) + 1), 0
    for number, name in enumerate(NAMES, 1):
        value = f"{lot.randrange(1000, 10000)}"
        end = _break_after(tokenizer, stored, number * stride, stride // 2)
        parts += [*stored[taken:end].tolist(), *text_ids(tokenizer, f" The {name} code is {value}.")]
        taken, places[name] = end, (len(parts), value)
    parts += stored[taken:].tolist()
    ids = torch.tensor(parts[: len(stored)], dtype=torch.int64)
    found = tuple(
        _asked(tokenizer, ids, name, value, end) for name, (end, value) in places.items() if end <= len(stored)
    )
    return ids if len(found) == len(NAMES) else ids[:0], found


def answers(model: Any, cache: Any, asked: Sequence[Asked], tokens: int) -> tuple[bool, ...]:
    """Return for each code whether a cache of `tokens` tokens gives it; the cache is left as it was."""
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


def _asked(tokenizer: Any, ids: Tensor, name: str, value: str, end: int) -> Asked:
    question = f"What is the {name} code?"
    if getattr(tokenizer, "chat_template", None):
        turn = turn_ids(tokenizer, question, ids.tolist())
    else:
        turn = text_ids(tokenizer, f"\n\n{question} ")
    opening = text_ids(tokenizer, f"The {name} code is")
    return Asked((*turn, *opening), tuple(text_ids(tokenizer, f" {value}")), len(ids) - end)
