"""What training minimises behaves as bits and divergence do."""

from __future__ import annotations

import math

import pytest
import torch

from tinyvae.fit.loss import divergence_nats, error_bits, trade


def test_error_that_cannot_be_mended_costs_what_mending_it_would() -> None:
    """A latent at the distortion of its step: a little less error costs as many bits as it is worth."""
    step = 0.3
    distortion = step**2 / 12
    slope = 0.5 * math.log2((distortion + 1e-6) / distortion) / 1e-6
    assert float(error_bits(torch.ones(1), torch.full((1, 1), step))) == pytest.approx(slope, rel=1e-3)


def test_divergence_is_zero_for_equal_logits_and_positive_otherwise() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert float(divergence_nats(logits, logits + 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(divergence_nats(logits, logits.flip(1))) > 0.1


def test_trade_does_not_move_along_the_curve() -> None:
    """A finer step costs a bit a coded latent and divides the divergence by four: the loss stays where it was."""
    coded = torch.tensor(12.0)
    usual = torch.tensor(0.01)
    divergence = torch.tensor(0.01, requires_grad=True)
    trade(torch.tensor(0.0), coded, divergence, usual).backward()
    assert divergence.grad is not None
    # Change of the loss for a divergence times 2**-2, to first order.
    per_octave = float(divergence.grad) * 0.01 * 2 * math.log(2)
    assert per_octave == pytest.approx(12.0, rel=1e-4)
