"""The scalar quantiser is the one that is known to be best: published distortions, closed forms, its own conditions."""

from __future__ import annotations

import numpy as np
import pytest

from kvcompress_eval.baselines.lloyd_max import gaussian, lloyd_max, sphere_coordinate, sphere_levels

MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits", MAX_1960)
def test_gaussian_distortion_is_the_published_one(bits: int) -> None:
    _, distortion = lloyd_max(gaussian(), 2**bits)
    assert distortion == pytest.approx(MAX_1960[bits], rel=6e-4)


def test_two_gaussian_levels_are_the_means_of_the_half_lines() -> None:
    levels, distortion = lloyd_max(gaussian(), 2)
    assert levels == pytest.approx([-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)])
    assert distortion == pytest.approx(1 - 2 / np.pi)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_coordinate_on_the_ordinary_sphere_is_uniform(bits: int) -> None:
    """Archimedes: with three dimensions the density is flat, so levels are equally spaced and D = 1/3 / 4^bits."""
    levels, distortion = lloyd_max(sphere_coordinate(3), 2**bits)
    assert levels == pytest.approx((np.arange(2**bits) + 0.5) / 2**bits * 2 - 1, abs=1e-7)
    assert distortion == pytest.approx(1 / 3 / 4**bits, rel=1e-6)


@pytest.mark.parametrize("bits", [1, 4])
def test_large_spheres_are_gaussian_and_small_ones_are_narrower(bits: int) -> None:
    _, limit = lloyd_max(gaussian(), 2**bits)
    scaled = [size * lloyd_max(sphere_coordinate(size), 2**bits)[1] for size in (8, 32, 128, 4096)]
    assert scaled == sorted(scaled)
    assert scaled[-1] == pytest.approx(limit, rel=1e-3)
    assert scaled[0] < 0.9 * limit


@pytest.mark.parametrize("size", [2, 8, 32])
def test_levels_are_means_of_their_cells_by_plain_summation(size: int) -> None:
    """The conditions of Lloyd and Max, on a fine grid of angles instead of the closed forms."""
    angles = (np.arange(400_000) + 0.5) / 400_000 * np.pi
    places, weights = np.cos(angles), np.sin(angles) ** (size - 2)
    levels, distortion = lloyd_max(sphere_coordinate(size), 8)
    cells = np.abs(places[:, None] - levels[None]).argmin(1)
    means = np.bincount(cells, weights * places) / np.bincount(cells, weights)
    assert levels == pytest.approx(means, abs=2e-5)
    assert distortion == pytest.approx(float(weights @ (places - levels[cells]) ** 2 / weights.sum()), rel=1e-4)


def test_random_directions_are_quantised_with_the_computed_error() -> None:
    vectors = np.random.default_rng(0).standard_normal((20_000, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    levels, distortion = lloyd_max(sphere_coordinate(8), 4)
    nearest = levels[np.abs(vectors[..., None] - levels).argmin(-1)]
    assert float(((vectors - nearest) ** 2).mean()) == pytest.approx(distortion, rel=0.01)


def test_one_level_is_zero_and_a_vector_of_one_number_is_exact() -> None:
    levels, distortion = lloyd_max(gaussian(), 1)
    assert (levels.tolist(), distortion) == ([0.0], 1.0)
    for bits in (1, 2, 3, 4):
        assert {-1.0, 1.0} <= set(sphere_levels(1, bits))
        assert len(sphere_levels(1, bits)) == 2**bits
