"""Record conversations with the reference model: planted facts and questions are scripted, all else is sampled."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.lm.facts import Fact, ask, invent_fact, state
from train.lm.tokenizer import ROLES


@dataclass(slots=True)
class Script:
    """One conversation under way.

    Attributes:
        rng: Its own source of chance, so sessions do not depend on each other.
        target_tokens: Length at which the closing questions begin.
        messages: Turns so far.
        facts: Facts stated, in order, with the message that stated each.
        asked: Questions asked: message index, fact.
    """

    rng: random.Random
    target_tokens: int
    messages: list[dict[str, str]] = field(default_factory=list)
    facts: list[tuple[int, Fact]] = field(default_factory=list)
    asked: list[tuple[int, int, Fact]] = field(default_factory=list)

    def open(self) -> None:
        """State two or three facts."""
        taken: set[str] = set()
        self.state([invent_fact(self.rng, taken) for _ in range(self.rng.choice((2, 3)))])

    def state(self, facts: list[Fact]) -> None:
        """Add a user turn that states facts; the answer is left to the model."""
        self.facts += [(len(self.messages), fact) for fact in facts]
        self.messages.append(state(facts, self.rng)[0])

    def ask(self) -> None:
        """Add a user turn that asks for a fact stated before."""
        stated, fact = self.rng.choice(self.facts)
        self.asked.append((len(self.messages), stated, fact))
        self.messages.append(ask(fact, self.rng)[0])

    def row(self, session_id: str) -> dict[str, Any]:
        """Return the session as it is written."""
        facts = [
            {"question_message": question, "stated_message": stated, "value": fact.value}
            for question, stated, fact in self.asked
        ]
        return {"id": session_id, "messages": self.messages, "facts": facts}


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
        scripts = []
        for number in range(first, min(first + batch, count)):
            rng = random.Random(f"{seed}:{number}")
            scripts.append(Script(rng, rng.randrange(shortest, longest)))
            scripts[-1].open()
        torch.manual_seed(seed * 1009 + first)
        _converse(recorder, scripts)
        for number, script in enumerate(scripts, first):
            yield script.row(f"s{number:03d}")


def _converse(recorder: Recorder, scripts: list[Script]) -> None:
    """Bring every conversation to its length, then close it with three questions."""
    live = list(scripts)
    for _ in range(MOST_ROUNDS):
        if not live:
            break
        recorder.run_on(live, 160)
        for script in live:
            _require_answer(script)
        live = [s for s in live if recorder.length_tokens(s) < s.target_tokens]
        for script in live:
            draw = script.rng.random()
            if draw < 0.6:
                script.ask()
            elif draw < 0.75:
                script.state([invent_fact(script.rng, {fact.subject for _, fact in script.facts})])
    for _ in range(3):
        for script in scripts:
            script.ask()
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
