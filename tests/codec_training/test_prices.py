"""Smooth prices are those of the frozen tables."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("lightning", reason="the train extra is not installed")

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress_train.prices import BENT, TAIL, Prices
from tinyvae.quantize import LEVELS_PER_OCTAVE, quantize, scale_of_level

LEVEL_OF_ONE_STEP = 4 * LEVELS_PER_OCTAVE


def gaussian(level: int, rows: int = 4000) -> torch.Tensor:
    return scale_of_level(level) * torch.randn(rows, 8, generator=torch.Generator().manual_seed(level))


def smooth(codec: TinyVAECodec, latents: torch.Tensor, level: int) -> float:
    levels = torch.full(latents.shape, level, dtype=torch.int32)
    return float(Prices.of(codec.bank).bits(latents, torch.ones(len(latents), 1), levels)[0].mean()) / latents.shape[1]


@pytest.mark.parametrize("level", [64, 100, 130])
def test_latents_of_a_level_cost_what_its_table_charges(codec: TinyVAECodec, level: int) -> None:
    latents = gaussian(level)
    levels = torch.full(latents.shape, level, dtype=torch.int32)
    symbols = quantize(latents, 1.0, levels)
    charged = codec.bank.code_lengths(symbols.numpy(), levels.numpy()).mean()
    assert smooth(codec, latents, level) == pytest.approx(charged, rel=0.15, abs=0.03)


@pytest.mark.parametrize("level", [64, 100, 130])
def test_a_spread_that_changes_costs_what_the_next_tables_charge(codec: TinyVAECodec, level: int) -> None:
    """Halved and coded under the level of half the spread: the tangent goes the same way, and is not below."""
    latents, entropy = gaussian(level), Prices.of(codec.bank).entropy
    change = smooth(codec, latents * 2**-0.25, level) - smooth(codec, latents, level)
    charged = float(entropy[level - LEVELS_PER_OCTAVE // 4] - entropy[level])
    assert change < 0
    assert change == pytest.approx(charged, rel=0.35)


def test_the_bent_square_of_a_gaussian_is_what_it_is_divided_by() -> None:
    square = gaussian(LEVEL_OF_ONE_STEP, 200_000).square()
    assert float((TAIL * torch.log1p(square / TAIL)).mean()) == pytest.approx(BENT, abs=2e-3)


def test_a_wide_latent_pays_a_bit_an_octave_and_one_that_is_not_coded_nothing(codec: TinyVAECodec) -> None:
    prices = Prices.of(codec.bank)
    assert float(prices.octave[120]) == pytest.approx(1.0, abs=0.05)
    bits, octave = prices.bits(torch.full((3, 2), 7.0), torch.ones(3, 1), torch.full((3, 2), -1, dtype=torch.int32))
    assert not bool(bits.any())
    assert not bool(octave.any())


def test_gradients_stay_finite_at_zero_and_far_out(codec: TinyVAECodec) -> None:
    latents = torch.tensor([[0.0, 1e-20, 1e10]], requires_grad=True)
    levels = torch.full((1, 3), LEVEL_OF_ONE_STEP, dtype=torch.int32)
    bits = Prices.of(codec.bank).bits(latents, torch.ones(1, 1), levels)[0].sum()
    bits.backward()
    assert latents.grad is not None
    assert bool(torch.isfinite(latents.grad).all())
    assert math.isfinite(float(bits.detach()))
