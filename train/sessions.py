"""Record conversations with the reference model: rules, facts, problems, questions are scripted, all else sampled."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.lm.compose import category_of
from train.lm.documents import keep, repeat
from train.lm.facts import Fact, ask, invent_fact, invent_name, state
from train.lm.instructions import checks, instruct, invent_instructions
from train.lm.tokenizer import ROLES

_GOODS = ("pen", "lamp", "chair", "ticket", "book", "cup", "shirt", "bag", "clock", "cake")
_GREETING = "Hello, I need some help today."


@dataclass(slots=True)
class Script:
    """One conversation under way: what the user is made to say depends on its category.

    Attributes:
        rng: Its own source of chance, so sessions do not depend on each other.
        target_tokens: Length at which the closing questions begin.
        category: One of `train.lm.compose.CATEGORIES`.
        text: The long text of a document session.
        messages: Turns so far.
        facts: Facts stated, in order, with the message that stated each.
        asked: Questions asked: message index, fact.
        instructions: Rules given in the first turn, as sessions keep them.
        prices: What each thing costs, stated in the first turn of an arithmetic session.
    """

    rng: random.Random
    target_tokens: int
    category: str = "facts"
    text: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    facts: list[tuple[int, Fact]] = field(default_factory=list)
    asked: list[tuple[int, int, Fact]] = field(default_factory=list)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    prices: dict[str, int] = field(default_factory=dict)

    def open(self) -> None:
        """Add the first user turn: rules, facts, prices, a text or a greeting."""
        if self.category == "instructions":
            rules = invent_instructions(self.rng)
            self.instructions = checks(rules)
            self.messages += instruct(rules, self.rng)
        if self.category in ("facts", "instructions"):
            taken: set[str] = set()
            self.state([invent_fact(self.rng, taken) for _ in range(self.rng.choice((2, 3)))])
        elif self.category == "arithmetic":
            self.prices = {thing: self.rng.randrange(2, 40) for thing in self.rng.sample(_GOODS, 5)}
            listed = " ".join(f"A {thing} costs ${price}." for thing, price in self.prices.items())
            self.messages.append({"role": "user", "content": listed})
        else:
            self.messages.append({"role": "user", "content": self.text or _GREETING})

    def go_on(self) -> None:
        """Add the user's next scripted turn, or none: then the model speaks for both."""
        draw = self.rng.random()
        if not self.facts:
            self.state([invent_fact(self.rng, set())])
        elif self.category in ("facts", "instructions"):
            if draw < 0.6:
                self.ask()
            elif draw < 0.75:
                self.state([invent_fact(self.rng, {fact.subject for _, fact in self.facts})])
        elif self.category == "arithmetic":
            self.calculate()
        elif self.category == "documents":
            self.recite()

    def close(self) -> None:
        """Add one of the closing turns; the first asks for a fact if none was asked for yet."""
        if not self.asked:
            self.ask()
            return
        closing = {"arithmetic": self.calculate, "documents": self.recite, "dialogue": self.thank}
        closing.get(self.category, self.ask)()

    def state(self, facts: list[Fact]) -> None:
        """Add a user turn that states facts; the answer is left to the model."""
        self.facts += [(len(self.messages), fact) for fact in facts]
        self.messages.append(state(facts, self.rng)[0])

    def ask(self) -> None:
        """Add a user turn that asks for a fact stated before."""
        stated, fact = self.rng.choice(self.facts)
        self.asked.append((len(self.messages), stated, fact))
        self.messages.append(ask(fact, self.rng)[0])

    def calculate(self) -> None:
        """Add a problem whose figures stand in the first turn."""
        first, second = self.rng.sample(list(self.prices), 2)
        counts = self.rng.randrange(2, 9), self.rng.randrange(2, 9)
        problem = f"{invent_name(self.rng)} buys {counts[0]} {first}s and {counts[1]} {second}s. How much is that?"
        self.messages.append({"role": "user", "content": problem})

    def recite(self) -> None:
        """Add a passage of the text and ask for it back."""
        words = self.text.split()
        start = self.rng.randrange(max(1, len(words) - 24))
        self.messages += [*keep(" ".join(words[start : start + 20])), repeat("")[0]]

    def thank(self) -> None:
        """Add a turn that asks for nothing new."""
        self.messages.append({"role": "user", "content": "Thank you. Can you sum up what I wanted?"})

    def row(self, session_id: str) -> dict[str, Any]:
        """Return the session as it is written."""
        facts = [
            {"question_message": question, "stated_message": stated, "value": fact.value}
            for question, stated, fact in self.asked
        ]
        row: dict[str, Any] = {"id": session_id, "category": self.category, "messages": self.messages}
        return row | {"facts": facts, "instructions": self.instructions}


DOCUMENT_TOKENS = 480
MOST_ROUNDS = 60
"""A model that ends no turn would never reach the length."""


class Recorder:
    """Samples turns for a batch of conversations at once.

    Args:
        model: The reference model.
        tokenizer: Its tokenizer.
        temperature: Of sampling.
    """

    def __init__(self, model: Any, tokenizer: Any, temperature: float = 0.8) -> None:
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature

    def length_tokens(self, script: Script) -> int:
        """Return the length of a conversation under the chat template."""
        return len(self._ids(script, ""))

    def _ids(self, script: Script, opening: str) -> list[int]:
        text = self.tokenizer.apply_chat_template(script.messages, tokenize=False) + opening
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def sample_texts(self, count: int, tokens: int) -> list[str]:
        """Return running texts, each of about `tokens` tokens, that the model makes up."""
        if not count:
            return []
        start = torch.full((count, 1), self.tokenizer.bos_token_id)
        stops = self.tokenizer.all_special_ids
        out = self.model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=self.temperature,
            top_p=0.95,
            max_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=stops,
        )
        return [self.tokenizer.decode(row[start.shape[1] :], skip_special_tokens=True) for row in out]

    @torch.inference_mode()
    def run_on(self, scripts: list[Script], max_new_tokens: int, *, answer_only: bool = False) -> None:
        """Let the model go on with every conversation, writing both roles, and keep its complete turns.

        Args:
            scripts: Conversations; the model answers where the user spoke last, else it opens a user turn.
            max_new_tokens: Tokens sampled; an incomplete turn at the end is dropped.
            answer_only: Stop at the end of the first turn.
        """
        openings = ["user" if s.messages[-1]["role"] == "assistant" else "assistant" for s in scripts]
        rows = [self._ids(s, ROLES[role]) for s, role in zip(scripts, openings, strict=True)]
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = self.model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=self.temperature,
            top_p=0.95,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.tokenizer.eos_token_id if answer_only else pad,
            pad_token_id=pad,
            suppress_tokens=self.tokenizer.convert_tokens_to_ids(["<|bos|>", "<|pad|>", "<|system|>"]),
        )
        for script, row, role in zip(scripts, out[:, width:], openings, strict=True):
            script.messages += _turns(ROLES[role] + self.tokenizer.decode(row), role)


_TURN = re.compile(r"<\|(user|assistant)\|>([^<]*)<\|end\|>")


def _turns(text: str, role: str) -> list[dict[str, str]]:
    """Return the complete alternating turns of sampled text, ending with the assistant's."""
    turns: list[dict[str, str]] = []
    place = 0
    while (match := _TURN.match(text, place)) and match[1] == role and match[2].strip():
        turns.append({"role": role, "content": match[2].strip()})
        place, role = match.end(), "user" if role == "assistant" else "assistant"
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    return turns


def record(
    recorder: Recorder, count: int, *, shortest: int, longest: int, seed: int, batch: int
) -> Iterator[dict[str, Any]]:
    """Yield `count` recorded conversations of about `shortest` to `longest` tokens."""
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        kinds = [category_of(number) for number in numbers]
        torch.manual_seed(seed * 1009 + first)
        texts = iter(recorder.sample_texts(kinds.count("documents"), DOCUMENT_TOKENS))
        scripts = []
        for number, kind in zip(numbers, kinds, strict=True):
            rng = random.Random(f"{seed}:{number}")
            text = " ".join(next(texts).split()) if kind == "documents" else ""
            script = Script(rng, rng.randrange(shortest, longest), kind, text)
            script.open()
            scripts.append(script)
        _converse(recorder, scripts)
        for number, script in enumerate(scripts, first):
            yield script.row(f"s{number:03d}")


def record_texts(recorder: Recorder, count: int, *, tokens: int, seed: int, batch: int) -> Iterator[dict[str, Any]]:
    """Yield `count` texts of about `tokens` tokens that any causal model makes up, as sessions without turns."""
    for first in range(0, count, batch):
        torch.manual_seed(seed * 1009 + first)
        texts = recorder.sample_texts(min(batch, count - first), tokens)
        for number, text in enumerate(texts, first):
            yield {"id": f"t{number:03d}", "category": "text", "text": text}


def _converse(recorder: Recorder, scripts: list[Script]) -> None:
    """Bring every conversation to its length, then close it with three scripted turns."""
    live = list(scripts)
    for _ in range(MOST_ROUNDS):
        if not live:
            break
        recorder.run_on(live, 160)
        for script in live:
            _require_answer(script)
        live = [s for s in live if recorder.length_tokens(s) < s.target_tokens]
        for script in live:
            script.go_on()
    for _ in range(3):
        for script in scripts:
            script.close()
        recorder.run_on(scripts, 40, answer_only=True)
        for script in scripts:
            _require_answer(script)


def _require_answer(script: Script) -> None:
    """Answer for a model that ran out of tokens, so that roles keep alternating."""
    if script.messages[-1]["role"] == "user":
        script.messages.append({"role": "assistant", "content": "Okay."})


def write_sessions(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write sessions as JSON lines and return their number."""
    count = 0
    with path.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            handle.flush()
            count += 1
    return count
