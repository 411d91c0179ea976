"""Instruction survival: add a user turn, and check whether the answer follows the standing instructions.

Eviction loses some instructions silently while others survive (Chen et al., "The Pitfalls of KV Cache Compression",
arXiv 2510.00231), which no mean over tokens shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.hf.types import Cache, CausalLM, Tokenizer
from kvcompress.metrics.recall import reply, turn_ids

POSITIONS = ("start", "end", "anywhere")
PROBES = ("Thank you very much.", "Can you help me with something else?")
"""What the user says: nothing that a rule speaks of."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of form that every answer has to keep.

    Attributes:
        position: Where the text must stand: start, end or anywhere.
        text: What must stand there.
    """

    position: str
    text: str

    def is_kept(self, answer: str) -> bool:
        """Tell whether an answer keeps the rule."""
        answer = answer.strip()
        if self.position == "start":
            return answer.startswith(self.text)
        return answer.endswith(self.text) if self.position == "end" else self.text in answer


def rules(session: Session, tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Rule]:
    """Return the session's rules that were given within `token_ids`, a prefix of the session."""
    found = []
    for row in session.instructions:
        said = Session("", session.messages[: int(row["stated_message"]) + 1])
        if row.get("position") in POSITIONS and len(session_token_ids(said, tokenizer)) <= len(token_ids):
            found.append(Rule(str(row["position"]), str(row["text"])))
    return found


def count_kept(model: CausalLM, cache: Cache, tokenizer: Tokenizer, found: Sequence[Rule], token_ids: Tensor) -> int:
    """Return how many of `len(PROBES) * len(found)` checks hold when the model goes on from a cache."""
    return sum(map(sum, checks(model, cache, tokenizer, found, token_ids)))


def checks(
    model: CausalLM, cache: Cache, tokenizer: Tokenizer, found: Sequence[Rule], token_ids: Tensor
) -> list[list[bool]]:
    """Return for each rule whether the answer to each of `PROBES` keeps it when the model goes on from a cache."""
    if not found:
        return []
    answers = [
        reply(model, cache, tokenizer, turn_ids(tokenizer, probe, token_ids.tolist()), len(token_ids))
        for probe in PROBES
    ]
    return [[rule.is_kept(answer) for answer in answers] for rule in found]
