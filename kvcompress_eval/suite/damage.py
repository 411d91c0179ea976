"""What a resumed model says, position by position, beside what it says from the exact cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError

NEAR_TOKENS = 128
"""The tiers' bounds are over so many tokens that follow; a session goes on for longer."""

ROWS = 32
"""Rows of logits compared at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Damage:
    """One continuation.

    Attributes:
        kl_nats: [T] float64 KL(exact || decoded) after each token.
        same: [T] bool, whether the most likely token is the same.
    """

    kl_nats: Tensor
    same: Tensor

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a row: over the first tokens, "near", and over all, "far"."""
        near, near_same = self.kl_nats[:NEAR_TOKENS], self.same[:NEAR_TOKENS]
        return {
            "kl_near_nats": float(near.mean()),
            "kl_far_nats": float(self.kl_nats.mean()),
            "top1_near": float(near_same.double().mean()),
            "top1_far": float(self.same.double().mean()),
            "worst_near_nats": float(near.max()),
            "worst_far_nats": float(self.kl_nats.max()),
        }


def damage(exact: Tensor, logits: Tensor) -> Damage:
    """Compare two predictions of the same tokens.

    In float32 for speed: of probabilities p and q the KL is summed as p (d + exp(-d) - 1) with d = log(p / q), whose
    terms are positive and of second order in d. It is within 1e-6 nats of the KL in float64.

    Args:
        exact: [T, V] float32 log-probabilities.
        logits: [T, V] float.

    Raises:
        InputError: Logits are NaN or infinite.
    """
    kl, same = [], []
    for true, rows in zip(torch.split(exact, ROWS), torch.split(logits, ROWS), strict=True):
        found = torch.log_softmax(rows.float(), -1)
        apart = true - found
        terms = torch.where(true < -80, found.exp(), true.exp() * (apart + torch.expm1(-apart)))
        kl.append(terms.sum(-1, dtype=torch.float64).clamp(min=0.0))
        same.append(true.argmax(-1) == found.argmax(-1))
    result = Damage(torch.cat(kl), torch.cat(same))
    if not bool(torch.isfinite(result.kl_nats).all()):
        raise InputError("logits contain NaN or infinity", "A model that overflows may need float32")
    return result
