"""Endless training documents: sessions that refer back, worked problems, long texts, copying, look-up.

Every document is a function of (corpus, seed), so a run that is cut off goes on exactly where it was.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from train.lm.corpus import Corpus, Message
from train.lm.facts import Fact, ask, invent_fact, invent_name, state
from train.lm.instructions import follow_throughout, instruct, invent_instructions
from train.lm.tokenizer import BOS, render

_NUMBER = re.compile(r"\d{2,}")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")
_RECALL_FIRST = ("What was my first message?", "Repeat the first thing I said.", "How did I begin this chat?")
_WORD = re.compile(r"\S+")


def disguise(messages: list[Message], rng: random.Random) -> list[Message]:
    """Replace numbers and names of a dialogue consistently by invented ones.

    Task dialogues reuse a few hundred entities, which a model memorises; invented ones can only be
    looked up in the context, so the model learns to look.
    """
    known: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return known.setdefault(match[0], "".join(rng.choice("123456789") for _ in match[0]))

    def name(match: re.Match[str]) -> str:
        return known.setdefault(match[0], invent_name(rng))

    return [{**m, "content": _NAME.sub(name, _NUMBER.sub(number, m["content"]))} for m in messages]


def _fillers(corpus: Corpus, rng: random.Random) -> list[list[Message]]:
    """Return the exchanges (user turn, assistant turn) of one dialogue or problem."""
    if corpus.problems and rng.random() < 0.12:
        return [rng.choice(corpus.problems)]
    messages = rng.choice(corpus.dialogues)
    if rng.random() < 0.5:
        messages = disguise(messages, rng)
    return [messages[i : i + 2] for i in range(0, len(messages) - 1, 2)]


def session(
    corpus: Corpus, rng: random.Random, budget_chars: int, *, ask_share: float = 0.18, early_share: float = 0.0
) -> list[Message]:
    """Compose a conversation of about `budget_chars` in which facts are stated early and asked for later.

    Args:
        corpus: Source of the talk between.
        rng: Source of chance.
        budget_chars: Length before the closing questions.
        ask_share: Share of exchanges followed by a question.
        early_share: Share of questions that go back to the facts of the very start.
    """
    messages: list[Message] = []
    taken: set[str] = set()
    open_facts: list[Fact] = []
    size = 0
    # A few facts at the very start, so that long distances are as common as the session allows.
    for _ in range(rng.choice((2, 2, 3) if early_share else (1, 1, 2))):
        fresh = [invent_fact(rng, taken) for _ in range(rng.choice((1, 2, 2, 3)))]
        open_facts += fresh
        messages += state(fresh, rng)
    opening_facts = tuple(open_facts)
    while size < budget_chars:
        for exchange in _fillers(corpus, rng):
            messages += exchange
            draw = rng.random()
            if draw < 0.10:
                fresh = [invent_fact(rng, taken)]
                open_facts += fresh
                messages += state(fresh, rng)
            elif draw < 0.10 + ask_share:
                early = early_share > 0 and rng.random() < early_share
                messages += ask(rng.choice(opening_facts if early else open_facts), rng)
            elif draw < 0.12 + ask_share:
                first = messages[0]["content"]
                messages += [
                    {"role": "user", "content": rng.choice(_RECALL_FIRST)},
                    {"role": "assistant", "content": f"You said: {first}"},
                ]
            size = sum(len(m["content"]) + 2 for m in messages)
            if size >= budget_chars:
                break
    closing = [*rng.sample(opening_facts, len(opening_facts)), *rng.sample(open_facts, len(open_facts))]
    for fact in closing[:14] if early_share else rng.sample(open_facts, min(len(open_facts), 4)):
        messages += ask(fact, rng)
    return messages


def _session(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    return render(session(corpus, rng, int(budget_chars * rng.uniform(0.35, 0.85))))


def _instructed_session(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    """Give rules of form in the first turn that all answers of a long session keep."""
    rules = invent_instructions(rng)
    chars = int(budget_chars * rng.uniform(0.30, 0.72))
    talk = session(corpus, rng, chars, ask_share=0.28, early_share=0.75)
    return render(instruct(rules, rng) + follow_throughout(rules, talk))


def _long_session(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    """Fill most of the sequence, then ask for everything that its start said.

    The share leaves room for the closing questions: cut off with the sequence, they would teach nothing.
    """
    chars = int(budget_chars * rng.uniform(0.60, 0.78))
    return render(session(corpus, rng, chars, ask_share=0.28, early_share=0.75))


def _problem(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    return render([m for _ in range(1 + budget_chars // 2000) for m in rng.choice(corpus.problems)])


def excerpt(corpus: Corpus, rng: random.Random, size: int) -> str:
    """Return `size` characters from somewhere in a long text of the corpus."""
    text = rng.choice(corpus.texts)
    start = rng.randrange(max(1, len(text) - size))
    return text[start : start + size]


def _long_text(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    return BOS + excerpt(corpus, rng, budget_chars)


def keep(passage: str) -> list[Message]:
    """Return the turns that give a passage to remember."""
    return [
        {"role": "user", "content": f"Keep this text: {passage}"},
        {"role": "assistant", "content": "Okay."},
    ]


def repeat(passage: str) -> list[Message]:
    """Return the turns that ask for the passage and give it back."""
    return [
        {"role": "user", "content": "Repeat the text that I gave you."},
        {"role": "assistant", "content": passage},
    ]


def _copy(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    """Ask for a passage word by word, with other text between it and its copy."""
    words = _WORD.findall(excerpt(corpus, rng, 400)) if rng.random() < 0.5 else [invent_name(rng) for _ in range(30)]
    passage = " ".join(words[: rng.randrange(8, 40)])
    between = excerpt(corpus, rng, rng.randrange(20, max(40, budget_chars // 2)))
    talk = [{"role": "user", "content": between}, {"role": "assistant", "content": "Okay."}]
    return render([*keep(passage), *talk, *repeat(passage)])


def _lookup(corpus: Corpus, rng: random.Random, budget_chars: int) -> str:
    """A bare table of facts, then questions about all of it: the shortest way to learn to look up."""
    taken: set[str] = set()
    facts = [invent_fact(rng, taken) for _ in range(rng.randrange(2, max(3, min(24, budget_chars // 90))))]
    messages: list[Message] = []
    for start in range(0, len(facts), 3):
        messages += state(facts[start : start + 3], rng)
    for fact in rng.sample(facts, len(facts)):
        messages += ask(fact, rng)
    return render(messages)


_Mixture = tuple[tuple[float, Callable[[Corpus, random.Random, int], str]], ...]
_MIXTURE: _Mixture = (
    (0.56, _session),
    (0.06, _problem),
    (0.17, _long_text),
    (0.09, _copy),
    (0.12, _lookup),
)
_LONG_MIXTURE: _Mixture = (
    (0.62, _long_session),
    (0.22, _instructed_session),
    (0.08, _long_text),
    (0.08, _copy),
)
_LONG_TOKENS = 1024


def document(corpus: Corpus, rng: random.Random, length_tokens: int) -> str:
    """Draw one document of the mixture, sized for a training sequence of `length_tokens`."""
    draw = rng.random()
    for share, make in _LONG_MIXTURE if length_tokens >= _LONG_TOKENS else _MIXTURE:
        draw -= share
        if draw < 0:
            return make(corpus, rng, int(length_tokens * 3.6))
    return _long_text(corpus, rng, int(length_tokens * 3.6))
