"""What a task is: it makes examples, and an example's questions ask a resumed session and judge what it says."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kvcompress.hf.generation import feed, generate_from


@dataclass(frozen=True, slots=True, eq=False)
class Resumed:
    """A session that can be asked any number of questions, each from the same state.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        cache: The cache of the session; it stays as it is.
        tokens: Tokens of the session, dropped ones too.
    """

    model: Any
    tokenizer: Any
    cache: Any
    tokens: int

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits [T, V] float32 after each of the tokens that are said next."""
        return feed(self.model, copy.deepcopy(self.cache), torch.tensor(ids), self.tokens).float()

    def further(self, ids: Sequence[int]) -> tuple[Tensor, Resumed]:
        """Return the logits [V] float32 after the tokens that are said next, and the session behind them."""
        cache = copy.deepcopy(self.cache)
        last = feed(self.model, cache, torch.tensor(ids), self.tokens, last_only=True)[-1].float()
        return last, Resumed(self.model, self.tokenizer, cache, self.tokens + len(ids))

    def written(self, ids: Sequence[int], most_tokens: int) -> str:
        """Return what the model says, greedily, to the tokens that are said next."""
        new_ids = generate_from(
            self.model,
            copy.deepcopy(self.cache),
            ids,
            next_position=self.tokens,
            max_new_tokens=most_tokens,
            stop_ids=[] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id],
        )
        text: str = self.tokenizer.decode(new_ids, skip_special_tokens=True)
        return text


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of a question.

    Attributes:
        scores: One for each answer that it asks for, 1 right and 0 wrong.
        said: What the model said, for each of them.
    """

    scores: tuple[float, ...]
    said: tuple[str, ...]


class Question(Protocol):
    """One question; see `kvcompress_eval.tasks.asking` for those at hand.

    Attributes:
        places: For each answer where in the context it stands, from 0, the start, to 1; empty where it is all over it.
        asked: Token ids, to tell one example from another.
    """

    @property
    def places(self) -> tuple[float, ...]:
        """Return the places."""
        ...

    @property
    def asked(self) -> tuple[int, ...]:
        """Return the token ids."""
        ...

    def ask(self, resumed: Resumed) -> Judged:
        """Ask a resumed session and judge what it says."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A context and what is asked of it.

    Attributes:
        context: Token ids whose cache is stored.
        questions: Asked one by one, each from the end of the context.
    """

    context: tuple[int, ...]
    questions: tuple[Question, ...]


class Task(Protocol):
    """Makes examples.

    Attributes:
        name: Of its module, e.g. "key_value".
        title: In headings.
        short: In tables, at most six letters.
        about: What is in the context, what is asked, how it is judged: sentences for the report.
        unit: What a size counts, e.g. "pairs".
        sizes: From the easiest to the hardest.
        answers: Judged of one example.
    """

    name: str
    title: str
    short: str
    about: str
    unit: str
    sizes: tuple[int, ...]
    answers: int

    def make(self, chance: random.Random, size: int, tokenizer: Any) -> Example:
        """Make one example.

        Args:
            chance: Everything random comes from it: the same state gives the same example.
            size: One of `sizes`, or another that the user asked for.
            tokenizer: The model's.

        Raises:
            InputError: The tokenizer has no chat template where the task needs one, or a package is missing.
        """
        ...
