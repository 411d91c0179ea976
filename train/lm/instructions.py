"""Standing instructions: rules of form, given in the first turn, that every later answer has to keep.

Eviction is known to lose instructions silently (arXiv 2510.00231), so the model that measures codecs must follow some.
Whether an answer keeps a rule can be read off its text (`kvcompress.metrics.instructions`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from train.lm.corpus import Message
from train.lm.facts import invent_name

_WORDS = ("Alright", "Okay", "Listen", "Indeed", "Hello", "Right", "Sure", "Yes", "Well", "Thanks", "Ready", "Fine")
_ENDINGS = ("Over", "Done", "Stop", "Out", "Finished", "Goodbye", "Cheers", "Roger", "End", "Enough")
_ACKS = ("Of course.", "I will do that.", "Understood.", "No problem.")

# kind -> how it is asked for and how an answer looks that keeps it; several apply from the inside out, in this order.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "name": (("Call me {w} in every answer.", "Always address me as {w}."), "{w}, {answer}"),
    "begin": (("Begin every answer with {w}.", "Start all your answers with the word {w}."), "{w}. {answer}"),
    "end": (("End every answer with {w}.", "Close all your answers with the word {w}."), "{answer} {w}."),
    "sign": (("Sign every answer with {w}.", "Put your name {w} under every answer."), "{answer} - {w}"),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """A rule such as kind "end" with the word "Over"."""

    kind: str
    word: str

    def apply(self, answer: str) -> str:
        """Return an answer that keeps this rule."""
        return KINDS[self.kind][1].format(w=self.word, answer=answer)


def invent_instructions(rng: random.Random) -> list[Instruction]:
    """Draw one to three rules of different kinds, in the order in which they apply."""
    chosen = set(rng.sample(list(KINDS), rng.choice((1, 2, 2, 3))))
    return [Instruction(kind, _word(kind, rng)) for kind in KINDS if kind in chosen]


def _word(kind: str, rng: random.Random) -> str:
    if kind in ("name", "sign"):
        return invent_name(rng)
    listed = _WORDS if kind == "begin" else _ENDINGS
    return rng.choice(listed) if rng.random() < 0.6 else invent_name(rng)


def instruct(rules: list[Instruction], rng: random.Random) -> list[Message]:
    """Return the user turn that gives the rules and an acknowledgement, which keeps them already."""
    said = [rng.choice(KINDS[rule.kind][0]).format(w=rule.word) for rule in rng.sample(rules, len(rules))]
    return [
        {"role": "user", "content": " ".join(said)},
        {"role": "assistant", "content": follow(rules, rng.choice(_ACKS))},
    ]


def follow(rules: list[Instruction], answer: str) -> str:
    """Return an answer that keeps all rules."""
    for rule in rules:
        answer = rule.apply(answer)
    return answer


def follow_throughout(rules: list[Instruction], messages: list[Message]) -> list[Message]:
    """Return messages whose assistant turns keep all rules."""
    return [m | {"content": follow(rules, m["content"])} if m["role"] == "assistant" else m for m in messages]


def checks(rules: list[Instruction]) -> list[dict[str, Any]]:
    """Return what a session keeps of its rules: where in an answer which text must stand."""
    shapes = {
        "sign": ("end", "- {w}"),
        "end": ("anywhere", " {w}."),
        "begin": ("start", "{w}. "),
        "name": ("anywhere", "{w}, "),
    }
    return [
        {"stated_message": 0, "position": shapes[rule.kind][0], "text": shapes[rule.kind][1].format(w=rule.word)}
        for rule in rules
    ]
