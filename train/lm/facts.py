"""Planted facts: short statements that a session asks for later, so that looking back pays."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from train.lm.corpus import Message

_OWNERS = ("sister", "brother", "landlord", "dentist", "neighbour", "teacher", "manager", "cousin", "guide", "driver")
_PETS = ("dog", "cat", "horse", "parrot", "rabbit")
_PLACES = ("locker", "garage", "gate", "safe", "office", "cabin", "suitcase", "bike", "cellar", "studio", "archive")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "silver", "pink", "grey")
_FIRST = [
    "Anna",
    "Marek",
    "Lena",
    "Tomas",
    "Ivy",
    "Oscar",
    "Nora",
    "Felix",
    "Ruth",
    "Jonas",
    "Clara",
    "Hugo",
    "Mira",
    "Simon",
    "Edith",
    "Victor",
    "Paula",
    "Leon",
    "Alma",
    "Carl",
    "Rosa",
    "Emil",
    "Greta",
    "Otto",
    "Helen",
    "Karim",
    "Yara",
    "Samir",
    "Dora",
    "Ralph",
    "Stella",
    "Boris",
    "Agnes",
    "Pedro",
    "Lucy",
    "Martin",
    "Olga",
    "Peter",
    "Vera",
    "Adam",
]
_ONSETS = [
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_NUCLEI = ["a", "e", "i", "o", "u", "ai", "ea", "or", "ar", "en", "il", "on"]
_CODAS = ("", "n", "r", "l", "s", "ck", "th", "m", "nd", "ford", "ton", "by", "wick", "ham")
_DISHES = ["soup", "pasta", "curry", "salad", "pie", "rice", "noodles", "pancakes", "dumplings", "stew"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A subject such as "locker code" and its value such as "4821"."""

    subject: str
    value: str

    @property
    def question_answer(self) -> str:
        """The sentence that answers the question for this fact."""
        return f"Your {self.subject} is {self.value}."


def invent_name(rng: random.Random) -> str:
    """Return a made-up proper name of two or three syllables."""
    syllables = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(rng.choice((1, 1, 2))))
    return (syllables + rng.choice(_CODAS)).capitalize()


def _person(rng: random.Random) -> str:
    return rng.choice(_FIRST) if rng.random() < 0.5 else f"{rng.choice(_FIRST)} {invent_name(rng)}"


def _code(rng: random.Random) -> str:
    digits = "".join(rng.choice("0123456789") for _ in range(rng.choice((3, 4, 4, 4, 5, 6))))
    if rng.random() < 0.7:
        return digits
    return "".join(rng.choice("ABCDEFGHJKLMNPRSTVWXYZ") for _ in range(2)) + digits[:3]


def _amount(rng: random.Random) -> str:
    return f"${rng.randrange(11, 990)}" if rng.random() < 0.7 else f"{rng.randrange(11, 990)} euros"


def _time(rng: random.Random) -> str:
    clock = f"{rng.randrange(1, 13)}:{rng.choice(('00', '15', '30', '45'))}"
    return f"{rng.choice(_DAYS)} at {clock} {rng.choice(('am', 'pm'))}"


def _place(rng: random.Random) -> str:
    place = rng.choice(_PLACES)
    return f"{rng.choice(_COLOURS)} {place}" if rng.random() < 0.25 else place


_KINDS = (
    (lambda r: f"{_place(r)} code", _code),
    (lambda r: f"{_place(r)} number", _code),
    (lambda r: r.choice(("booking", "ticket", "order", "invoice", "account", "policy")) + " number", _code),
    (lambda r: f"{r.choice(_OWNERS)}'s name", _person),
    (lambda r: f"{r.choice(_PETS)}'s name", invent_name),
    (lambda r: r.choice(("home town", "meeting place", "street", "hotel", "school", "village")), invent_name),
    (lambda r: r.choice(("travel", "food", "repair", "gift", "rent", "music")) + " budget", _amount),
    (lambda r: r.choice(("train", "flight", "dinner", "class", "interview", "doctor")) + " appointment", _time),
    (lambda r: r.choice(("car", "door", "coat", "house", "boat", "bag")) + " colour", lambda r: r.choice(_COLOURS)),
    (lambda r: r.choice(("favourite", "birthday", "holiday")) + " dish", lambda r: r.choice(_DISHES)),
)
_STATEMENTS = (
    "My {s} is {v}.",
    "By the way, my {s} is {v}.",
    "Please remember that my {s} is {v}.",
    "Note that my {s} is {v}.",
    "Before I forget, my {s} is {v}.",
    "One thing to keep in mind: my {s} is {v}.",
)
_ACKS = ("Got it, your {s} is {v}.", "Noted. Your {s} is {v}.", "Okay, I will remember that.", "Thank you, noted.")
_QUESTIONS = (
    "What is my {s}?",
    "Do you remember my {s}?",
    "Can you tell me my {s} again?",
    "Remind me, what is my {s}?",
    "I forgot. What is my {s}?",
)


def invent_fact(rng: random.Random, taken: set[str] | None = None) -> Fact:
    """Draw a fact whose subject is not in `taken`; the subject is added to it."""
    taken = set() if taken is None else taken
    while True:
        subject, value = rng.choice(_KINDS)
        fact = Fact(subject(rng), value(rng))
        if fact.subject not in taken:
            taken.add(fact.subject)
            return fact


def state(facts: list[Fact], rng: random.Random) -> list[Message]:
    """Return the user turn that states facts and the assistant's acknowledgement."""
    said = " ".join(rng.choice(_STATEMENTS).format(s=f.subject, v=f.value) for f in facts)
    ack = rng.choice(_ACKS).format(s=facts[-1].subject, v=facts[-1].value)
    return [{"role": "user", "content": said}, {"role": "assistant", "content": ack}]


def ask(fact: Fact, rng: random.Random) -> list[Message]:
    """Return the user turn that asks for a fact and the correct answer."""
    question = rng.choice(_QUESTIONS).format(s=fact.subject)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": fact.question_answer}]


_ANSWER = re.compile(r"Your (.+) is (.+)\.")


def planted_facts(messages: list[Message]) -> list[dict[str, Any]]:
    """Return each question of a conversation with where its fact was stated, as sessions keep them.

    Args:
        messages: A conversation made of `state` and `ask` and whatever lies between.
    """
    found = []
    for index, message in enumerate(messages):
        match = _ANSWER.fullmatch(message["content"]) if message["role"] == "assistant" else None
        if match is None or not messages[index - 1]["content"].endswith("?"):
            continue
        said = f"my {match[1]} is {match[2]}."
        stated = [i for i, m in enumerate(messages[:index]) if m["role"] == "user" and said in _lower_my(m["content"])]
        if stated:
            found.append({"question_message": index - 1, "stated_message": stated[0], "value": match[2]})
    return found


def _lower_my(text: str) -> str:
    return text.replace("My ", "my ")
