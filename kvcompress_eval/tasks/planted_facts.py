"""Facts planted in a conversation and asked for at its end."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

from kvcompress.data.sessions import text_ids
from kvcompress_eval.tasks.asking import Blanks
from kvcompress_eval.tasks.conversation import Messages, asked_after, count_tokens, exchange
from kvcompress_eval.tasks.lexicon import ADJECTIVES, DIGITS, NOUNS, PLACES, drawn
from kvcompress_eval.tasks.protocol import Example

OWNED = ("locker", "garage", "gate", "safe", "office", "cabin", "suitcase", "bike", "cellar", "studio", "archive")
SHOWN, ASKED = 2, 4


class PlantedFacts:
    """Asks for four of six codes that the user told on the way; the other two were asked for before."""

    name = "planted_facts"
    title = "planted facts"
    short = "facts"
    about = (
        "A conversation in which the user tells six codes of four digits, from its first turn on, between small talk, "
        "and the assistant repeats them; two are asked for and answered at its end, then the four others are asked "
        "for. The answer's opening is given; right is a code whose digits are all right."
    )
    unit = "tokens"
    sizes = (256, 384, 512, 768, 1024, 1400)
    answers = ASKED

    def make(self, chance: random.Random, size: int, tokenizer: Any) -> Example:
        """Make a conversation of about `size` tokens."""
        facts = [(f"{owned} code", drawn(chance, DIGITS, 4)) for owned in chance.sample(OWNED, SHOWN + ASKED)]
        stated = [
            exchange(f"By the way, my {subject} is {value}.", f"Thank you. {_opening(subject)} {value}.")
            for subject, value in facts
        ]
        asked = sorted(chance.sample(range(len(facts)), ASKED))
        shown = [
            message
            for index, (subject, value) in enumerate(facts)
            if index not in asked
            for message in exchange(_question(subject), f"{_opening(subject)} {value}.")
        ]
        messages, starts = _between(stated, _small_talk(chance, [*stated, shown], size, tokenizer))
        context, prompts = asked_after(tokenizer, [*messages, *shown], [_question(facts[index][0]) for index in asked])
        blanks = []
        for index, prompt in zip(asked, prompts, strict=True):
            subject, value = facts[index]
            given = (*prompt, *text_ids(tokenizer, _opening(subject)))
            before = count_tokens(tokenizer, messages[: starts[index]]) if starts[index] else 0
            answer = tuple(text_ids(tokenizer, f" {value}"))
            blanks.append(Blanks(((given, answer),), (before / len(context),)))
        return Example(tuple(context), tuple(blanks))


def _question(subject: str) -> str:
    return f"I forgot. What is my {subject}?"


def _opening(subject: str) -> str:
    return f"Your {subject} is"


def _small_talk(chance: random.Random, fixed: list[Messages], size: int, tokenizer: Any) -> list[Messages]:
    """Return exchanges about nothing that bring a conversation to its size."""
    length, alone = count_tokens(tokenizer, list(chain.from_iterable(fixed))), count_tokens(tokenizer, fixed[0])
    talk = list[Messages]()
    while length < size:
        thing, place = f"the {chance.choice(ADJECTIVES)} {chance.choice(NOUNS)}", chance.choice(PLACES)
        talk.append(exchange(f"Where is {thing}?", f"You will find {thing} at the {place}."))
        length += count_tokens(tokenizer, [*fixed[0], *talk[-1]]) - alone
    return talk


def _between(stated: list[Messages], talk: list[Messages]) -> tuple[Messages, list[int]]:
    """Return the messages, statements evenly spread among small talk, and at which message each statement stands."""
    messages, starts = Messages(), list[int]()
    for number, statement in enumerate(stated):
        starts.append(len(messages))
        messages += statement
        first, last = (len(talk) * step // len(stated) for step in (number, number + 1))
        messages += chain.from_iterable(talk[first:last])
    return messages, starts


TASK = PlantedFacts()
