"""Sessions composed from corpora, by category: what codecs are fitted to, and what models are measured with."""

from __future__ import annotations

import random
from typing import Any

from train.lm.corpus import Corpus, Message
from train.lm.documents import excerpt, keep, repeat, session
from train.lm.facts import planted_facts
from train.lm.instructions import checks, follow_throughout, instruct, invent_instructions

# Dealt out by number, so that any count has about the same mixture; facts are what most questions ask for.
CATEGORIES = ("facts", "instructions", "dialogue", "facts", "arithmetic", "facts", "instructions", "documents")


def category_of(number: int) -> str:
    """Return the category of the session with this number."""
    return CATEGORIES[number % len(CATEGORIES)]


def composed_session(
    corpus: Corpus, rng: random.Random, budget_chars: int, session_id: str, category: str
) -> dict[str, Any]:
    """Return a conversation of about `budget_chars` as a session row, with what there is to ask and to check."""
    row: dict[str, Any] = {"id": session_id, "category": category}
    if category == "dialogue":
        return row | {"messages": _talk(corpus, rng, budget_chars)}
    if category == "arithmetic":
        return row | {"messages": _problems(corpus, rng, budget_chars)}
    if category == "documents":
        return row | {"messages": _document(corpus, rng, budget_chars)}
    messages, found = session(corpus, rng, budget_chars), list[dict[str, Any]]()
    if category == "instructions":
        given = invent_instructions(rng)
        found = checks(given)
        plain = [*instruct(given, rng), *messages]
        messages = plain[:2] + follow_throughout(given, plain[2:])
        return row | {"messages": messages, "facts": planted_facts(plain), "instructions": found}
    return row | {"messages": messages, "facts": planted_facts(messages)}


def _talk(corpus: Corpus, rng: random.Random, budget_chars: int) -> list[Message]:
    messages: list[Message] = []
    while sum(len(m["content"]) for m in messages) < budget_chars:
        dialogue = rng.choice(corpus.dialogues)
        messages += dialogue[: len(dialogue) // 2 * 2]
    return messages


def _problems(corpus: Corpus, rng: random.Random, budget_chars: int) -> list[Message]:
    messages: list[Message] = []
    while sum(len(m["content"]) for m in messages) < budget_chars:
        messages += rng.choice(corpus.problems or corpus.dialogues)[:2]
    return messages


def _document(corpus: Corpus, rng: random.Random, budget_chars: int) -> list[Message]:
    """Let the user read out a long text, and the assistant give parts of it back."""
    text = excerpt(corpus, rng, int(0.45 * budget_chars))
    words = text.split()
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Okay."}]
    while sum(len(m["content"]) for m in messages) < budget_chars:
        start = rng.randrange(max(1, len(words) - 40))
        passage = " ".join(words[start : start + 24])
        messages += [*keep(passage), *repeat(passage)]
    return messages
