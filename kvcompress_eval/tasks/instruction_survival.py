"""Does an instruction at the start of the context survive? Rules of form that a text keeps or not.

Verifiable rules as in "Instruction-Following Evaluation for Large Language Models" (Zhou et al., arXiv 2311.07911).
What differs, for models too small for most of those: three kinds of rule, each with a word of its own that no model
would say unasked, and each shown kept in the first answers; then a long text, and a question about something else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvcompress.data.sessions import text_ids
from kvcompress_eval.tasks.asking import Reply
from kvcompress_eval.tasks.conversation import Messages, asked_within, count_tokens, exchange
from kvcompress_eval.tasks.lexicon import DIGITS, drawn, sentence
from kvcompress_eval.tasks.protocol import Example

SHOWN, ASKED = 3, 3
ANSWER_TOKENS = 16
HEADING = "Here is a text for later."

TALK = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("What colour is grass?", "Grass is green."),
    ("Which animal says moo?", "A cow says moo."),
    ("What do bees make?", "Bees make honey."),
    ("Where do fish live?", "Fish live in water."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("What do people write with?", "People write with a pen."),
    ("What shines at night?", "The moon shines at night."),
    ("Who repairs cars?", "A mechanic repairs cars."),
    ("What do cats like to drink?", "Cats like to drink milk."),
    ("Which season is the coldest?", "Winter is the coldest season."),
)
GREETINGS = ("Ahoy!", "Hooray!", "Behold!", "Salute!", "Bravo!", "Eureka!", "Hurrah!", "Namaste!")
TITLES = ("Captain", "Doctor", "Professor", "Colonel", "Baron", "Admiral")
NAMES = ("Varga", "Lindqvist", "Okoro", "Petrov", "Tanaka", "Moreau", "Castell", "Hollis")


@dataclass(frozen=True, slots=True)
class Form:
    """A rule of form.

    Attributes:
        said: How it is asked for.
        word: What every answer has to have, at its start unless `anywhere`.
        keep: Makes an answer that keeps it.
        anywhere: Whether the word may stand anywhere.
    """

    said: str
    word: str
    keep: Callable[[str], str]
    anywhere: bool = False

    def is_kept(self, answer: str) -> bool:
        """Tell whether an answer keeps the rule."""
        return self.word in answer if self.anywhere else answer.strip().startswith(self.word)


def invent(chance: random.Random) -> Form:
    """Draw a rule: a greeting first, a number first, or a name in every answer."""
    kind = chance.randrange(3)
    if kind == 0:
        word = chance.choice(GREETINGS)
        return Form(f'Begin every answer with the word "{word}"', word, lambda answer: f"{word} {answer}")
    if kind == 1:
        number = drawn(chance, DIGITS, 3)
        return Form(f"Write the number {number} before every answer.", number, lambda answer: f"{number}: {answer}")
    name = f"{chance.choice(TITLES)} {chance.choice(NAMES)}"
    return Form(
        f"Call me {name} in every answer.", name, lambda answer: f"{name}, {answer[0].lower()}{answer[1:]}", True
    )


class InstructionSurvival:
    """Asks three questions whose answers have to keep the rule of the first turn."""

    name = "instruction_survival"
    title = "instruction survival"
    short = "rules"
    about = (
        "The first turn asks for a rule of form (a greeting first, a number first, a name in every answer), three "
        "answers show it, and a long text follows. Three questions are then answered in the model's own words, at most "
        f"{ANSWER_TOKENS} tokens. Right is an answer that keeps the rule."
    )
    unit = "tokens"
    sizes = (256, 384, 512, 768, 1024, 1400)
    answers = ASKED

    def make(self, chance: random.Random, size: int, tokenizer: Any) -> Example:
        """Make a conversation of about `size` tokens."""
        rule = invent(chance)
        talk = chance.sample(TALK, SHOWN + ASKED)
        shown = [(question, rule.keep(answer)) for question, answer in talk[:SHOWN]]
        messages: Messages = [
            *exchange(f"{rule.said} {shown[0][0]}", shown[0][1]),
            *(message for pair in shown[1:] for message in exchange(*pair)),
        ]
        text, length = [HEADING], count_tokens(tokenizer, messages)
        while length < size:
            text.append(sentence(chance))
            length += len(text_ids(tokenizer, " " + text[-1]))
        context, prompts = asked_within(tokenizer, messages, " ".join(text), [q for q, _ in talk[SHOWN:]])
        replies = [Reply(tuple(prompt), (rule.is_kept,), ANSWER_TOKENS, (0.0,)) for prompt in prompts]
        return Example(tuple(context), tuple(replies))


TASK = InstructionSurvival()
