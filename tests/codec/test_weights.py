"""Matrices stored in few bits, the transform that is made of one, the regression of low rank."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.fit.moments import PANEL, Gram, Moments
from tinyvae.quantize import DEAD_ZONE, outside_bin, quantize
from tinyvae.transform import Metric, Transform, block_metric, times_block_metric, weighted_klt
from tinyvae.weights import RankedMatrix, StoredMatrix


def spd(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


BITS = (4, 5, 6, 8)


@given(st.integers(0, 2**16), st.integers(1, 7), st.integers(1, 9), st.sampled_from(BITS))
def test_stored_matrix_is_as_near_as_its_step_allows(seed: int, rows: int, columns: int, bits: int) -> None:
    exact = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 9 - 4)
    stored = StoredMatrix(rows, columns, bits)
    stored.store(exact)
    # Never worse than without clipping; a scale keeps 8 bits, so steps are up to a 128th wider.
    step = exact.abs().amax(1, keepdim=True) / stored.largest * 1.01
    plain = (exact - (exact / step).round().clamp(-stored.largest, stored.largest) * step).square().sum(1)
    error = (stored.dense - exact).square().sum(1)
    assert bool((error <= 1.5 * plain + 0.25 * step[:, 0].square() * columns).all())
    for row in range(rows):
        assert torch.equal(stored.rows(torch.tensor([row])), stored.dense[row : row + 1])


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_zeros_stays_zero_and_storing_again_replaces(bits: int) -> None:
    stored = StoredMatrix(2, 3, bits)
    stored.store(torch.zeros(2, 3))
    assert torch.equal(stored.dense, torch.zeros(2, 3))
    stored.store(torch.ones(2, 3))
    assert torch.allclose(stored.dense, torch.ones(2, 3), atol=0.01)
    fresh = StoredMatrix(2, 3, bits)
    assert torch.equal(fresh.dense, torch.zeros(2, 3))
    fresh.load_state_dict(stored.state_dict())
    assert torch.equal(fresh.dense, stored.dense)


@pytest.mark.parametrize("bits", BITS)
def test_training_sees_what_is_stored_and_its_gradient_passes_through(bits: int) -> None:
    stored = StoredMatrix(4, 6, bits)
    stored.store(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    before = stored.dense.clone()
    stored.begin_training()
    master = stored.master
    assert master is not None
    assert torch.allclose(stored.dense, before, atol=1e-6)
    stored.dense.sum().backward()
    assert torch.equal(master.grad, torch.ones(4, 6))
    with torch.no_grad():
        master.mul_(3.0).add_(0.1)
    seen, row = stored.dense.detach().clone(), stored.rows(torch.tensor([3])).detach()
    stored.end_training()
    assert torch.allclose(stored.dense, seen)
    assert torch.allclose(row, seen[3:])
    assert not list(stored.parameters())


def test_a_ranked_matrix_keeps_its_leading_rows_sharper() -> None:
    exact = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    stored = RankedMatrix(8, 400, 3)
    stored.store(exact)
    errors = (stored.dense - exact).square().mean(1)
    assert float(errors[:3].max()) < 0.02 * float(errors[3:].min())
    stored.begin_training()
    assert len(list(stored.parameters())) == 2
    assert torch.allclose(stored.dense, torch.cat([stored.sharp.dense, stored.rest.dense]))
    stored.end_training()
    assert not stored.is_training


def test_block_metric_multiplies_as_the_whole_matrix_does() -> None:
    weight = torch.block_diag(spd(3, 0), spd(2, 1), spd(4, 2))
    rows = torch.randn(5, 9, dtype=torch.float64)
    assert torch.allclose(times_block_metric(rows, block_metric(weight, (3, 2, 4)), (3, 2, 4)), rows @ weight)


def test_analysis_is_the_weighted_least_squares_inverse() -> None:
    weight = torch.block_diag(spd(4, 0), spd(4, 1))
    _, synthesis, _ = weighted_klt(spd(8, 2), Metric.of(weight), 3)
    transform = Transform((4, 4), 3)
    transform.store(synthesis, block_metric(weight, (4, 4)))
    kept, metric = transform.synthesis.dense.double(), torch.block_diag(*_blocks(transform))
    rows = torch.randn(6, 8, dtype=torch.float64)
    root = torch.linalg.cholesky(metric)
    plain = torch.linalg.lstsq((kept @ root).T, (rows @ root).T).solution.T
    assert torch.allclose(transform.analyse(rows.float()).double(), plain, atol=1e-4)
    latents = torch.randn(6, 3)
    again = transform.analyse(transform.synthesise(latents, torch.zeros(6, 8)))
    assert torch.allclose(again, latents, atol=1e-4)


def _blocks(transform: Transform) -> list[torch.Tensor]:
    metric = transform.metric.dense.double()
    return [(block + block.T) / 2 for block in (metric[:4], metric[4:])]


@pytest.mark.parametrize("size", [5, PANEL, 2 * PANEL + 3])
def test_the_sum_of_outer_products_is_whole_although_half_is_added(size: int) -> None:
    rows = torch.randn(20, size, generator=torch.Generator().manual_seed(size))
    gram = Gram.empty(size)
    gram.add(rows[:8], 0.5)
    gram.add(rows[8:])
    exact = 0.5 * rows[:8].double().T @ rows[:8].double() + rows[8:].double().T @ rows[8:].double()
    assert torch.allclose(gram.matrix(), exact, atol=1e-4)
    assert torch.equal(gram.matrix(), gram.matrix().T)


@pytest.mark.parametrize("features", [6, 3], ids=["more regressors than channels", "fewer"])
def test_regression_of_low_rank_leaves_the_least_weighted_error(features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    known, noise = torch.randn(800, features, generator=generator), torch.randn(800, 5, generator=generator)
    channels = known @ torch.randn(features, 5, generator=generator) + 2.0 + noise
    moments = Moments.empty(features, 5)
    moments.add(known, channels)
    metric = spd(5, 3)

    def error(weight: torch.Tensor) -> float:
        rest = (channels - known @ weight - moments.constant(weight)).double()
        return float(((rest @ metric) * rest).sum())

    full, _ = moments.solve()
    errors = [error(torch.mm(*moments.factored(Metric.of(metric), width))) for width in (1, 2, 5)]
    assert errors[0] > errors[1] >= errors[2] * (1 - 1e-6)
    assert errors[-1] == pytest.approx(error(full), rel=1e-3)
    inward, outward = moments.factored(Metric.of(metric), 2)
    for seed in range(5):
        other = torch.randn(inward.shape, generator=torch.Generator().manual_seed(seed)) * 0.05 * inward.abs().mean()
        assert error((inward + other) @ outward) >= errors[1] * (1 - 1e-6)


@given(st.floats(-9, 9), st.floats(0.1, 4))
def test_a_latent_lies_in_the_bin_it_rounds_to(value: float, step: float) -> None:
    latents = torch.tensor([[value]])
    symbols = quantize(latents, step, torch.zeros(1, 1))
    assert float(outside_bin(latents, symbols, step)) <= 1e-5
    beyond = float(outside_bin(latents, symbols + 1, step))
    scaled = value / step
    edges = (1 - DEAD_ZONE, DEAD_ZONE)
    assert beyond > 0 or min(abs(abs(scaled) % 1 - edge) for edge in edges) < 1e-4
