"""What training minimises behaves as bits and divergence do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.loss import divergence_nats, error_bits, rate_bits, trade


@given(st.floats(0.5, 50.0), st.integers(1, 40))
def test_halving_the_step_costs_one_bit_a_coded_latent_at_most(step: float, latents: int) -> None:
    values = 100 * torch.randn(6, latents, generator=torch.Generator().manual_seed(latents))
    coarse, fine = (rate_bits(values, torch.full((6, 1), size))[0] for size in (step, step / 2))
    assert bool((fine >= coarse).all())
    assert bool((fine - coarse <= latents + 1e-3).all())


def test_count_of_coded_latents_is_the_slope_of_the_bits() -> None:
    values = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    bits = [rate_bits(values, torch.full((20, 1), 0.7 * 2**shift))[0].sum() for shift in (-0.01, 0.01)]
    counted = rate_bits(values, torch.full((20, 1), 0.7))[1].sum()
    assert float((bits[0] - bits[1]) / 0.02) == pytest.approx(float(counted), rel=1e-3)


def test_gradients_of_bits_stay_finite_at_zero_and_far_out() -> None:
    values = torch.tensor([[0.0, 1e-20, 1e10]], requires_grad=True)
    rate_bits(values, torch.ones(1, 1))[0].sum().backward()
    assert bool(torch.isfinite(values.grad).all())


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
    coded = torch.full((10,), 12.0)
    usual = torch.tensor(0.01)
    divergence = torch.tensor(0.01, requires_grad=True)
    trade(torch.zeros(10), coded, divergence, usual).backward()
    per_octave = (
        float(divergence.grad) * 0.01 * 2 * math.log(2)
    )  # change of the loss for divergence * 2**-2, to first order
    assert per_octave == pytest.approx(12.0, rel=1e-4)
