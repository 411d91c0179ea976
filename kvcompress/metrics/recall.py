"""Recall of planted facts: ask about facts that a session stated, from any cache of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvcompress.data.sessions import Session, text_ids
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


def _ids(tokenizer: Tokenizer, messages: list[dict[str, str]], *, ask: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    return text_ids(tokenizer, text)


def turn_ids(tokenizer: Tokenizer, text: str, token_ids: Sequence[int]) -> list[int]:
    """Return the tokens that let the user say `text` after a session and open the assistant's turn.

    A session that stops in the middle of a turn has that turn closed first.

    Args:
        tokenizer: A tokenizer with a chat template.
        text: What the user says.
        token_ids: The session so far.
    """
    opening = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    before = _ids(tokenizer, opening)
    suffix = _ids(tokenizer, [*opening, {"role": "user", "content": text}], ask=True)[len(before) :]
    return [*_closing(before, tokenizer.eos_token_id, token_ids), *suffix]


def _closing(turn: Sequence[int], stop: int | None, token_ids: Sequence[int]) -> list[int]:
    """Return what is missing at the end of a session for its last turn to be closed.

    Args:
        turn: A turn that the template closed: a stop token, and in ChatML a line break behind it.
        stop: The stop token.
        token_ids: The session so far.
    """
    if stop is None or not len(token_ids) or (int(token_ids[-1]) == stop and stop not in turn):
        return []
    if stop not in turn:
        return [stop]
    ending = list(turn[len(turn) - 1 - turn[::-1].index(stop) :])
    there = (count for count in range(len(ending), 0, -1) if list(token_ids[-count:]) == ending[:count])
    return ending[next(there, 0) :]


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
        end = len(_ids(tokenizer, session.messages[: stated + 1]))
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
