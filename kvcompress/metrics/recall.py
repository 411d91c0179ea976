"""Recall of planted facts: ask about facts that a session stated, from any cache of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kvcompress.data.next_turn import appended, next_turn
from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.errors import InputError
from kvcompress.hf.generation import generate_from
from kvcompress.hf.types import Cache, CausalLM, Tokenizer

ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a fact stated within the tokens of a cache.

    Attributes:
        ids: Tokens that put the question and open the assistant's turn.
        value: The exact answer.
        distance_tokens: From the end of the statement to the question.
    """

    ids: tuple[int, ...]
    value: str
    distance_tokens: int


def turn_ids(tokenizer: Tokenizer, text: str, token_ids: Sequence[int]) -> list[int]:
    """Return the tokens that let the user say `text` after a session and open the assistant's turn.

    All of the session stays: one that stops in the middle of a turn has that turn closed first, and one that its
    template would lay out anew goes on as if it had not. `kvcompress.data.next_turn` says what the template gives.

    Args:
        tokenizer: A tokenizer with a chat template.
        text: What the user says.
        token_ids: The session so far.
    """
    try:
        turn = next_turn(tokenizer, token_ids, text)
    except InputError:  # such as a user's turn after one that was cut, in a template of strict turns
        return appended(tokenizer, token_ids, text)
    whole = turn.kept == len(token_ids)
    return list(turn.token_ids[turn.kept :]) if whole else appended(tokenizer, token_ids, text)


def questions(session: Session, tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Question]:
    """Return one question for each distinct fact whose statement lies within `token_ids`.

    Args:
        session: A session with facts.
        tokenizer: The model's tokenizer.
        token_ids: The tokens that the cache covers, a prefix of the session.
    """
    found: dict[tuple[int, str], Question] = {}
    if session.text is not None:
        return []
    for fact in session.facts:
        stated, value = int(fact["stated_message"]), str(fact["value"])
        end = len(session_token_ids(replace(session, messages=session.messages[: stated + 1]), tokenizer))
        if end > len(token_ids):
            continue
        text = session.messages[int(fact["question_message"])]["content"]
        ids = turn_ids(tokenizer, text, token_ids)
        found[stated, value] = Question(tuple(ids), value, len(token_ids) - end)
    return list(found.values())


def answer(model: CausalLM, cache: Cache, tokenizer: Tokenizer, question: Question, tokens: int) -> str:
    """Return the model's greedy answer from a copy of `cache`, which covers `tokens` tokens."""
    return reply(model, cache, tokenizer, question.ids, tokens)


def reply(model: CausalLM, cache: Cache, tokenizer: Tokenizer, turn: Sequence[int], tokens: int) -> str:
    """Return what the model says, greedily, to a user turn's tokens; the cache is left as it was."""
    new_ids = generate_from(
        model,
        copy.deepcopy(cache),
        turn,
        next_position=tokens,
        max_new_tokens=ANSWER_TOKENS,
        stop_ids=[tokenizer.eos_token_id],
    )
    text: str = tokenizer.decode(new_ids, skip_special_tokens=True)
    return text


def is_exact(text: str, value: str) -> bool:
    """Tell whether an answer states the value, as a whole word."""
    padded = f" {text.strip().rstrip('.')} "
    return f" {value} " in padded or f" {value}. " in padded or f" {value}, " in padded


def count_exact(
    model: CausalLM, cache: Cache, tokenizer: Tokenizer, asked: Sequence[Question], token_ids: Tensor
) -> int:
    """Return how many questions are answered exactly from a cache."""
    return sum(is_exact(answer(model, cache, tokenizer, q, len(token_ids)), q.value) for q in asked)
