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

from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import feed
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.subject import Subject

CHUNK_TOKENS = 128

ControlRow = dict[str, list[float]]
"""Of one session, by name: mean KL in nats, the largest, and the share of positions with the same most likely token."""


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


@torch.inference_mode()
def control_row(model: Any, subject: Subject) -> ControlRow:
    """Return what each way of computing the same moves on one session: once more, other threads, other chunks."""
    threads = torch.get_num_threads()
    other = 1 if threads > 1 else 2
    ways = {
        "prefilled again": (threads, 1 << 30),
        f"with {other} instead of {threads} threads": (other, 1 << 30),
        f"in chunks of {CHUNK_TOKENS} tokens": (threads, CHUNK_TOKENS),
    }
    ids, rest = subject.snapshot.token_ids, subject.continuation
    found = {}
    for name, (used, chunk) in ways.items():
        moved = damage(subject.exact, with_threads(used, partial(prefilled_again, model, ids, rest, chunk)))
        kl = moved.kl_nats
        found[name] = [float(kl.mean()), float(kl.max()), float(moved.same.double().mean())]
    return found


def over_sessions(rows: Sequence[ControlRow]) -> list[Control]:
    """Return the controls over sessions of one length; none without a session."""
    names = list(rows[0]) if rows else []
    return [_over(name, [row[name] for row in rows]) for name in names]


def _over(name: str, found: Sequence[Sequence[float]]) -> Control:
    kl, most, same = zip(*found, strict=True)
    return Control(name, sum(kl) / len(kl), max(most), sum(same) / len(same))
