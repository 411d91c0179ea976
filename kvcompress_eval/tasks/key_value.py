"""Key-value retrieval of random identifiers, by position.

After "Lost in the Middle: How Language Models Use Long Contexts" (Liu et al., arXiv 2307.03172), which asks a JSON
object of UUIDs for one value. What differs, for models that are too small for that: sentences in place of JSON, keys of
two random words and values of five random digits in place of UUIDs, and some look-ups at the end of the context that
are answered and show what is wanted.
"""

from __future__ import annotations

import random
from typing import Any

from kvcompress.data.sessions import plain_text_ids
from kvcompress_eval.tasks.asking import Blanks
from kvcompress_eval.tasks.lexicon import ADJECTIVES, DIGITS, NOUNS, different, drawn, spread
from kvcompress_eval.tasks.protocol import Example

SHOWN = 4
SHIFTS = 0.15, 0.65
"""Where in their stretches of the list the shown and the asked pairs lie: they never meet."""


class KeyValue:
    """Asks for five values of a list, from its start to its end."""

    name = "key_value"
    title = "key-value retrieval"
    short = "pairs"
    about = (
        "A list of random identifiers, each with a random number; four look-ups are shown answered, then five others "
        "are asked for, from the start of the list to its end. Right is a number whose digits are all right."
    )
    unit = "pairs"
    sizes = (10, 20, 40, 60, 80)
    answers = 5

    def make(self, chance: random.Random, size: int, tokenizer: Any) -> Example:
        """Make a list of `size` pairs."""
        keys = different(lambda: f"{chance.choice(ADJECTIVES)}-{chance.choice(NOUNS)}", size)
        pairs = [(f"The code of {key} is", f" {drawn(chance, DIGITS, 5)}") for key in keys]
        listed = [f"{given}{value}.\n" for given, value in pairs]
        shown = spread(SHOWN, size, SHIFTS[0])
        asked = [index + (index in shown) for index in spread(self.answers, size, SHIFTS[1])]
        context = plain_text_ids(tokenizer, "".join([*listed, "\n", *(listed[index] for index in shown)]))
        questions = [Blanks.of(tokenizer, [(*pairs[index], (index + 0.5) / size)]) for index in asked]
        return Example(tuple(context), tuple(questions))


TASK = KeyValue()
