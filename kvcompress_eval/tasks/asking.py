"""Ways of asking: blanks that the model fills in, candidates that it ranks, replies that it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.sessions import text_ids
from kvcompress_eval.tasks.protocol import Judged, Resumed


@dataclass(frozen=True, slots=True)
class Blanks:
    """Text in which answers are left out, filled in greedily.

    An answer is right if the model, choosing its most likely token each time, says exactly its tokens. That is read off
    one pass over text and answers: up to the first wrong token it is what generating token by token would say. Where
    several blanks stand in one text, a wrong answer is put right before the next is asked.

    Attributes:
        pieces: What is given and the answer that follows, token ids, in turn.
        places: Where in the context each answer stands.
    """

    pieces: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    places: tuple[float, ...]

    @classmethod
    def of(cls, tokenizer: Any, pieces: Sequence[tuple[str, str, float]]) -> Blanks:
        """Return blanks of text.

        Args:
            tokenizer: The model's.
            pieces: What is given, without a space at its end; the answer, with the space before it; its place.
        """
        ids = tuple((tuple(text_ids(tokenizer, a)), tuple(text_ids(tokenizer, b))) for a, b, _ in pieces)
        return cls(ids, tuple(place for _, _, place in pieces))

    @property
    def asked(self) -> tuple[int, ...]:
        """All of the text, answers included."""
        return tuple(token for piece in self.pieces for part in piece for token in part)

    def ask(self, resumed: Resumed) -> Judged:
        """Fill all blanks in one pass."""
        chosen = resumed.logits(self.asked).argmax(-1).tolist()
        scores, said, at = [], [], 0
        for given, answer in self.pieces:
            first = at + len(given) - 1  # the row that predicts the answer's first token
            found = _until_wrong(chosen[first : first + len(answer)], answer)
            scores.append(float(found == answer))
            said.append(str(resumed.tokenizer.decode(list(found))))
            at += len(given) + len(answer)
        return Judged(tuple(scores), tuple(said))


def _until_wrong(chosen: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
    """Return the greedy tokens up to the first that is not the answer's, that one included."""
    wrong = next((at for at, (a, b) in enumerate(zip(chosen, answer, strict=True)) if a != b), len(answer))
    return tuple(chosen[: wrong + 1])


@dataclass(frozen=True, slots=True)
class Ranked:
    """Candidates, of which the model finds those that are right more likely than all others.

    Attributes:
        prompt: Token ids before a candidate.
        right: Token ids of the right candidates.
        others: Token ids of the wrong ones.
        places: Where in the context each right one stands; may be empty.
    """

    prompt: tuple[int, ...]
    right: tuple[tuple[int, ...], ...]
    others: tuple[tuple[int, ...], ...]
    places: tuple[float, ...]

    @property
    def asked(self) -> tuple[int, ...]:
        """The prompt and all candidates."""
        return tuple(token for part in (self.prompt, *self.right, *self.others) for token in part)

    def ask(self, resumed: Resumed) -> Judged:
        """Score every candidate: a right one is found if fewer than so many as are right are more likely."""
        first, behind = resumed.further(self.prompt)
        candidates = (*self.right, *self.others)
        nats = [_log_likelihood(first, behind, candidate) for candidate in candidates]
        likeliest = sorted(range(len(nats)), key=lambda index: -nats[index])[: len(self.right)]
        found = tuple(float(index in likeliest) for index in range(len(self.right)))
        return Judged(found, tuple(str(resumed.tokenizer.decode(list(candidates[index]))) for index in likeliest))


def _log_likelihood(first: Tensor, behind: Resumed, candidate: tuple[int, ...]) -> float:
    """Return the log-likelihood of a candidate, of whose first token the logits [V] are known."""
    rows = first[None]
    if len(candidate) > 1:
        rows = torch.cat([rows, behind.logits(candidate[:-1])])
    return float(rows.log_softmax(-1)[torch.arange(len(candidate)), torch.tensor(candidate)].sum())


@dataclass(frozen=True, slots=True)
class Reply:
    """A turn that the model answers in its own words; its text is judged.

    Attributes:
        prompt: Token ids of the turn.
        rules: Each tells of the text whether it is kept; one score each.
        most_tokens: Of the answer.
        places: Where in the context each rule stands.
    """

    prompt: tuple[int, ...]
    rules: tuple[Callable[[str], bool], ...]
    most_tokens: int
    places: tuple[float, ...]

    @property
    def asked(self) -> tuple[int, ...]:
        """The turn."""
        return self.prompt

    def ask(self, resumed: Resumed) -> Judged:
        """Let the model answer."""
        text = resumed.written(self.prompt, self.most_tokens)
        return Judged(tuple(float(keeps(text)) for keeps in self.rules), (text,) * len(self.rules))
