"""How far predictions move when nothing is compressed: the noise floor.

Prefilling the same tokens with another number of threads, or in chunks of another size, adds floats in another order.
A codec whose damage is of this size cannot be told from exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eval.suite.damage import Damage, damage
from eval.suite.subject import Subject
from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import feed

CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Control:
    """What a way of computing the same moves.

    Attributes:
        name: What was done.
        kl_nats: Mean KL(exact cache || done again) over positions and sessions.
        kl_max_nats: The largest.
        top1_agreement: Share of positions with the same most likely token.
    """

    name: str
    kl_nats: float
    kl_max_nats: float
    top1_agreement: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


def prefilled_again(model: Any, token_ids: Tensor, continuation: Tensor, chunk_tokens: int) -> Tensor:
    """Return the logits [T, V] of the continuation after prefilling in chunks."""
    cache = new_cache(model)
    for start in range(0, len(token_ids), chunk_tokens):
        feed(model, cache, token_ids[start : start + chunk_tokens], start, last_only=True)
    return feed(model, cache, continuation, len(token_ids))


def with_threads(threads: int, call: Callable[[], Tensor]) -> Tensor:
    """Run a call with another number of threads, then set the old one again."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


class Controls:
    """Collects over sessions what each way of computing the same moves: the same again, other threads, other chunks.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        threads = torch.get_num_threads()
        other = 1 if threads > 1 else 2
        self.model = model
        self.ways: dict[str, tuple[int, int]] = {
            "prefilled again": (threads, 1 << 30),
            f"with {other} instead of {threads} threads": (other, 1 << 30),
            f"in chunks of {CHUNK_TOKENS} tokens": (threads, CHUNK_TOKENS),
        }
        self._damages: dict[str, list[Damage]] = {name: [] for name in self.ways}

    @torch.inference_mode()
    def add(self, subject: Subject) -> None:
        """Compute a session's predictions in each way."""
        ids, rest = subject.snapshot.token_ids, subject.continuation
        for name, (threads, chunk) in self.ways.items():
            logits = with_threads(threads, partial(prefilled_again, self.model, ids, rest, chunk))
            self._damages[name].append(damage(subject.exact, logits))

    def found(self) -> list[Control]:
        """Return the controls over the sessions added; none without a session."""
        return [_over(name, damages) for name, damages in self._damages.items() if damages]


def _over(name: str, damages: Sequence[Damage]) -> Control:
    kl = torch.cat([one.kl_nats for one in damages])
    same = torch.cat([one.same for one in damages])
    return Control(name, float(kl.mean()), float(kl.max()), float(same.double().mean()))
