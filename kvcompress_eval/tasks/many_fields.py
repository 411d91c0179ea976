"""Many fields of one context at once: dozens of look-ups, the next right after the last.

A cache whose keys were cut to a low rank still answers a question or two; dozens of look-ups, each of which needs the
key of one line among many alike, are where it fails. All of them are asked in one turn: a form that the model fills in.
"""

from __future__ import annotations

import random
from typing import Any

from kvcompress.data.sessions import plain_text_ids
from kvcompress_eval.tasks.asking import Blanks
from kvcompress_eval.tasks.lexicon import DIGITS, NOUNS, drawn
from kvcompress_eval.tasks.protocol import Example

ASKED = 24


class ManyFields:
    """Asks for 24 fields in one turn."""

    name = "many_fields"
    title = "many fields at once"
    short = "fields"
    about = (
        "A list of things, each with its number; then a form asks for 24 of them in another order, in one turn. Each "
        "field counts; a wrong one is put right before the next. Right is a number whose digits are all right."
    )
    unit = "fields"
    sizes = (24, 36, 48, 64, 80)
    answers = ASKED

    def make(self, chance: random.Random, size: int, tokenizer: Any) -> Example:
        """Make a list of `size` things, as many as there are names for at most."""
        things = chance.sample(NOUNS, min(size, len(NOUNS)))
        fields = [(f"The number of the {thing} is", f" {drawn(chance, DIGITS, 3)}") for thing in things]
        listed = "".join(f"{given}{value}.\n" for given, value in fields)
        context = plain_text_ids(tokenizer, f"{listed}\nThe same list in another order.\n")
        order = chance.sample(range(len(things)), min(ASKED, len(things)))
        # The line break belongs to the next field: the answer before it is whole without.
        breaks = ["", *[".\n"] * (len(order) - 1)]
        pieces = [
            (f"{mark}{fields[index][0]}", fields[index][1], (index + 0.5) / len(things))
            for mark, index in zip(breaks, order, strict=True)
        ]
        return Example(tuple(context), (Blanks.of(tokenizer, pieces),))


TASK = ManyFields()
