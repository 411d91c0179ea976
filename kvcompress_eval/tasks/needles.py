"""Needles of several keys in a haystack: RULER's multi-key retrieval.

After "RULER: What's the Real Context Size of Your Long-Context Language Models?" (Hsieh et al., arXiv 2404.06654),
written from the paper's description: the generator of the package lm_eval fetches data from the network as soon as it
is imported. What differs: the haystack is of sentences made here, not of essays; two of the needles are shown answered
at the end of the context; a question is put in the words of the needle.
"""

from __future__ import annotations

import random
from typing import Any

from kvcompress.data.sessions import plain_text_ids, text_ids
from kvcompress_eval.tasks.asking import Blanks
from kvcompress_eval.tasks.lexicon import ADJECTIVES, DIGITS, NOUNS, different, drawn, sentence
from kvcompress_eval.tasks.protocol import Example

OPENING = "Some special magic numbers are hidden within the following text. Remember them.\n"
SHOWN, ASKED = 2, 4


class Needles:
    """Asks for four of six needles, of which two are shown answered."""

    name = "needles"
    title = "multi-key needles"
    short = "needle"
    about = (
        "Sentences about nothing, and between them six that give a key and its magic number of seven digits; two are "
        "shown answered at the end, the four others are asked for. Right is a number whose digits are all right."
    )
    unit = "tokens"
    sizes = (256, 384, 512, 768, 1024, 1400)
    answers = ASKED

    def make(self, chance: random.Random, size: int, tokenizer: Any) -> Example:
        """Make a text of about `size` tokens."""
        keys = different(lambda: f"{chance.choice(ADJECTIVES)}-{chance.choice(NOUNS)}", SHOWN + ASKED)
        pairs = [(f"The special magic number for {key} is", f" {drawn(chance, DIGITS, 7)}") for key in keys]
        needles = [f"{given}{value}.\n" for given, value in pairs]
        shown = needles[1], needles[-2]
        fixed = len(text_ids(tokenizer, "".join([OPENING, *needles, "\n", *shown])))
        hay = list[str]()
        while fixed < size:
            hay.append(sentence(chance) + "\n")
            fixed += len(text_ids(tokenizer, hay[-1]))
        before = sorted(chance.sample(range(len(hay) + 1), min(len(needles), len(hay) + 1)))
        before += [len(hay)] * (len(needles) - len(before))
        text, places = [OPENING], list[float]()
        for index, straw in enumerate([*hay, ""]):
            for needle, at in zip(needles, before, strict=True):
                if at == index:
                    places.append(len("".join(text)))
                    text.append(needle)
            text.append(straw)
        whole = "".join(text)
        context = plain_text_ids(tokenizer, "".join([whole, "\n", *shown]))
        asked = [index for index, needle in enumerate(needles) if needle not in shown]
        questions = [Blanks.of(tokenizer, [(*pairs[index], places[index] / len(whole))]) for index in asked]
        return Example(tuple(context), tuple(questions))


TASK = Needles()
