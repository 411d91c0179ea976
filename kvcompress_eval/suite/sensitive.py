"""Positions where the context matters: there a codec can do damage, elsewhere every codec looks good."""

from __future__ import annotations

from torch import Tensor

SENSITIVE_NATS = 0.5


def sensitive_positions(worth_nats: Tensor) -> Tensor:
    """Return where cutting the context to its last 32 tokens moves the distribution by more than half a nat.

    Args:
        worth_nats: [T] KL(whole context || short context) in nats.

    Returns:
        [T] bool.
    """
    return worth_nats > SENSITIVE_NATS
