"""What is compared at each position of a continuation, and the figures of a row over its first positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress_eval.suite.damage import ROWS, damage
from kvcompress_eval.suite.sensitive import sensitive_positions
from kvcompress_eval.suite.subject import Subject

FIRST = 5
"""How many of the decoded side's most likely tokens may hold the exact side's first."""

DIGITS = 5
"""Significant ones of a position's KL in a row: what a float32 forward pass is good for, at half of the file's size."""


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """A continuation of T tokens, position by position.

    Attributes:
        kl_nats: [T] float64 KL(exact || decoded).
        same: [T] bool, whether the most likely token is the same.
        among_first: [T] bool, whether the exact side's is among the decoded side's first five.
        exact_log: [T - 1] float64 log-probability of the token that really followed, from the exact cache.
        decoded_log: [T - 1] float64 the same from the decoded one.
        worth_nats: [ceil(T / stride)] float64 what the context is worth, at every `stride`-th position.
        stride: See `worth_nats`.
    """

    kl_nats: Tensor
    same: Tensor
    among_first: Tensor
    exact_log: Tensor
    decoded_log: Tensor
    worth_nats: Tensor
    stride: int

    def figures(self, first: int) -> dict[str, Any]:
        """Return the figures over the first positions; those that need the context are looked for where it is known."""
        kl, worth = self.kl_nats[:first], self.worth_nats[: -(-first // self.stride)]
        sensitive, at = sensitive_positions(worth), slice(None, first, self.stride)
        change = self.decoded_log[:first] - self.exact_log[:first]
        moved = self.decoded_log[:first].exp() - self.exact_log[:first].exp()
        return {
            "per_token_kl_nats": [float(f"{nats:.{DIGITS}g}") for nats in kl.tolist()],
            "worth_nats": float(worth.mean()),
            "sensitive": int(sensitive.sum()),
            "sensitive_kl_nats": float(self.kl_nats[at][sensitive].sum()),
            "sensitive_same": int(self.same[at][sensitive].sum()),
            "top1_agreement": float(self.same[:first].double().mean()),
            "top5_agreement": float(self.among_first[:first].double().mean()),
            "ppl_ratio": float((-change.mean()).exp()),
            "rms_probability_change": float(moved.square().mean().sqrt()),
        }


def compare(subject: Subject, logits: Tensor) -> Positions:
    """Compare what is predicted from a decoded cache with what is predicted from the exact one.

    Args:
        subject: The session.
        logits: [T, V] float, from the decoded cache.

    Raises:
        InputError: Logits are NaN or infinite.
    """
    found, targets = damage(subject.exact, logits), subject.continuation[1:, None]
    exact_log = subject.exact[:-1].gather(-1, targets.to(subject.exact.device))[:, 0]
    return Positions(
        kl_nats=found.kl_nats.cpu(),
        same=found.same.cpu(),
        among_first=among_first(subject.exact, logits, FIRST).cpu(),
        exact_log=exact_log.double().cpu(),
        decoded_log=target_log_probabilities(logits[:-1], targets.to(logits.device)).cpu(),
        worth_nats=subject.worth_nats,
        stride=subject.worth_stride,
    )


def among_first(exact: Tensor, logits: Tensor, count: int) -> Tensor:
    """Return [T] bool: whether the exact side's most likely token is among the `count` most likely of the other.

    Args:
        exact: [T, V] float.
        logits: [T, V] float; of equal ones the smaller token id counts as more likely, as in argmax.
        count: How many.
    """
    found = []
    for true, rows in zip(torch.split(exact, ROWS), torch.split(logits, ROWS), strict=True):
        top = true.argmax(-1, keepdim=True)
        logit = rows.gather(-1, top)
        before = torch.arange(rows.shape[-1], device=rows.device) < top
        found.append(((rows > logit) | ((rows == logit) & before)).sum(-1) < count)
    return torch.cat(found)


def target_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Return [T] float64 log-probabilities of targets [T, 1] under logits [T, V]."""
    totals = torch.cat([torch.logsumexp(rows.float(), -1) for rows in torch.split(logits, ROWS)])
    return (logits.gather(-1, targets)[:, 0].double() - totals.double()).clamp(max=0.0)
