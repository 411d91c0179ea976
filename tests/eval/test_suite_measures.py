"""The suite's measures, each against an independent straightforward computation."""

from __future__ import annotations

import copy
import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.hf import capture, restore
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.suite.attention import attention_errors, attention_modules
from kvcompress_eval.suite.bootstrap import RESAMPLES, estimate_mean, estimate_quantiles, estimate_ratio, resampled
from kvcompress_eval.suite.bound import rate_bits, water_level
from kvcompress_eval.suite.branches import branch_divergence, jensen_shannon_nats
from kvcompress_eval.suite.economics import break_even_tokens, link_seconds, longest_context_tokens
from kvcompress_eval.suite.greedy import GreedyReport, follow, greedy_path
from kvcompress_eval.suite.hops import Journey, drift
from kvcompress_eval.suite.memory import peak_bytes
from kvcompress_eval.suite.sensitive import sensitive_positions
from tests.hf.families import model_of

IDS = torch.arange(40) * 7 % 61


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return model_of("llama")


def noisy(snapshot: KVSnapshot, scale: float) -> KVSnapshot:
    generator = torch.Generator().manual_seed(1)
    layers = tuple(
        LayerKV(
            layer.keys + scale * torch.randn(layer.keys.shape, generator=generator),
            layer.values + scale * torch.randn(layer.values.shape, generator=generator),
            layer.positions,
        )
        for layer in snapshot.layers
    )
    return KVSnapshot(layers, snapshot.token_ids, snapshot.origin)


def test_bootstrap_agrees_with_a_loop_and_with_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 40).tolist()
    estimate = estimate_mean(values)
    means = [sum(values[i] for i in drawn) / len(values) for drawn in resampled(len(values))]
    assert estimate.mean == pytest.approx(sum(values) / len(values))
    assert estimate.standard_error == pytest.approx(np.std(means, ddof=1))
    assert estimate.standard_error == pytest.approx(np.std(values) / math.sqrt(len(values)), rel=0.1)


def test_ratio_is_of_sums_and_resampled_together() -> None:
    above, below = [1.0, 5.0, 3.0], [2.0, 20.0, 4.0]
    estimate = estimate_ratio(above, below)
    assert estimate.mean == pytest.approx(9 / 26)
    loop = [sum(above[i] for i in d) / sum(below[i] for i in d) for d in resampled(3)]
    assert len(loop) == RESAMPLES
    assert estimate.standard_error == pytest.approx(np.std(loop, ddof=1))
    # Proportional sessions leave nothing to vary.
    assert estimate_ratio([1.0, 2.0], [3.0, 6.0]).standard_error == pytest.approx(0.0, abs=1e-12)


def test_one_session_has_no_standard_error() -> None:
    assert estimate_mean([2.0]).standard_error is None
    assert estimate_ratio([1.0], [2.0]).standard_error is None
    assert estimate_quantiles([[1.0, 2.0]], [0.5])[0].standard_error is None


def test_quantiles_pool_all_positions() -> None:
    sessions = [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0, 13.0]]
    (median,) = estimate_quantiles(sessions, [0.5])
    assert median.mean == 10.0
    assert median.standard_error is not None
    assert median.standard_error > 0


@given(
    st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
)
@settings(max_examples=100, deadline=None)
def test_water_level_meets_the_distortion_and_no_other_allocation_is_cheaper(values: list[float], share: float) -> None:
    variances = np.array(values)
    distortion = share * variances.sum()
    level = water_level(variances, distortion)
    assert np.minimum(level, variances).sum() == pytest.approx(distortion)
    best = rate_bits(variances, distortion)
    rng = np.random.default_rng(0)
    for _ in range(30):  # any other way to split the same distortion costs at least as much
        parts = rng.dirichlet(np.ones(len(variances))) * distortion
        parts = np.minimum(parts, variances)
        cost = float((0.5 * np.log2(variances / np.maximum(parts, 1e-300))).sum())
        assert cost >= best - 1e-9


def test_rate_of_equal_variances_is_the_textbook_formula() -> None:
    assert rate_bits(np.full(5, 4.0), 5 * 0.25) == pytest.approx(5 * 0.5 * math.log2(16))
    assert rate_bits(np.array([1.0, 2.0]), 3.0) == 0.0


def _exact_js(p: np.ndarray, q: np.ndarray) -> float:
    middle = (p + q) / 2
    return float(0.5 * (p * np.log(p / middle)).sum() + 0.5 * (q * np.log(q / middle)).sum())


def test_jensen_shannon_of_samples_approaches_the_analytic_value() -> None:
    rng = np.random.default_rng(3)
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    from_p, from_q = rng.choice(3, 20000, p=p), rng.choice(3, 20000, p=q)
    log_p, log_q = torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))
    found = jensen_shannon_nats(log_p[from_p], log_q[from_p], log_q[from_q], log_p[from_q])
    assert found == pytest.approx(_exact_js(p, q), abs=0.01)
    swapped = jensen_shannon_nats(log_q[from_q], log_p[from_q], log_p[from_p], log_q[from_p])
    assert swapped == pytest.approx(found)


def test_branches_from_equal_caches_do_not_differ_and_caches_stay(model: torch.nn.Module) -> None:
    snapshot = capture(model, IDS)
    cache, other = restore(snapshot, model), restore(noisy(snapshot, 2.0), model)
    before = copy.deepcopy(cache.layers[0].keys)
    same = branch_divergence(model, cache, restore(snapshot, model), IDS, [3], branches=4, length_tokens=6)
    assert same.jensen_shannon_nats < 1e-12  # ln 2 is not a binary fraction
    assert same.exact_to_decoded_nats == 0.0
    apart = branch_divergence(model, cache, other, IDS, [3], branches=8, length_tokens=6)
    assert 0 < apart.jensen_shannon_nats <= math.log(2)
    assert torch.equal(cache.layers[0].keys, before)


def test_branch_scores_are_those_of_single_sequences(model: torch.nn.Module) -> None:
    """The batched score of each branch equals the plain forward pass of that branch alone."""
    from kvcompress_eval.suite.branches import _sample, _score

    cache = restore(capture(model, IDS), model)
    with torch.no_grad():
        rows = _sample(model, cache, len(IDS), [3], 3, 5, 0)
        scores = _score(model, cache, len(IDS), [3], rows)
        for row, score in zip(rows, scores, strict=True):
            whole = torch.cat([IDS, torch.tensor([3]), row])[None]
            logs = model(whole).logits[0, len(IDS) : -1].double().log_softmax(-1)
            assert float(score) == pytest.approx(float(logs.gather(1, row[:, None]).sum()), abs=1e-4)


def test_branches_work_from_a_pruned_cache(model: torch.nn.Module) -> None:
    snapshot = capture(model, IDS)
    kept = torch.arange(0, len(IDS), 2)
    layers = tuple(LayerKV(x.keys[:, kept], x.values[:, kept], x.positions[kept]) for x in snapshot.layers)
    pruned = restore(KVSnapshot(layers, snapshot.token_ids, snapshot.origin), model)
    found = branch_divergence(model, pruned, copy.deepcopy(pruned), IDS, [3], branches=2, length_tokens=4)
    assert found.jensen_shannon_nats < 1e-12


def test_a_greedy_path_is_followed_to_its_first_difference(model: torch.nn.Module) -> None:
    snapshot = capture(model, IDS)
    cache = restore(snapshot, model)
    path = greedy_path(model, cache, len(IDS), [3], 12)
    tokens = torch.cat([IDS, torch.tensor([3])])
    with torch.no_grad():  # the uncached model, token by token
        for token, margin in zip(path.tokens, path.margins_nats, strict=True):
            logs = model(tokens[None]).logits[0, -1].log_softmax(-1)
            best = logs.sort(descending=True).values
            assert int(logs.argmax()) == token
            assert margin == pytest.approx(float(best[0] - best[1]), abs=1e-4)
            tokens = torch.cat([tokens, torch.tensor([token])])
    assert follow(model, cache, path) == GreedyReport(12, None)
    apart = follow(model, restore(noisy(snapshot, 3.0), model), path)
    other = greedy_path(model, restore(noisy(snapshot, 3.0), model), len(IDS), [3], 12)
    at = next(place for place, pair in enumerate(zip(path.tokens, other.tokens, strict=True)) if pair[0] != pair[1])
    assert apart == GreedyReport(at, path.margins_nats[at])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_attention_error_is_zero_for_equal_caches_and_matches_by_hand(family: str) -> None:
    model = model_of(family)
    snapshot = capture(model, IDS)
    rest = IDS[:8]
    cache = restore(snapshot, model)
    assert len(attention_modules(model)) == len(snapshot.layers)
    assert attention_errors(model, cache, restore(snapshot, model), rest, len(IDS)) == [0.0] * len(snapshot.layers)
    errors = attention_errors(model, cache, restore(noisy(snapshot, 0.1), model), rest, len(IDS))
    assert all(error > 0 for error in errors)


def test_drift_of_a_perfect_codec_is_arithmetic_noise(model: torch.nn.Module) -> None:
    hops = drift(model, None, lambda snapshot: snapshot, Journey(IDS, 8, 8, 8))
    assert [hop.hop for hop in hops] == [1, 2, 3, 4]  # as many as the tokens allow
    assert max(hop.kl_nats for hop in hops) < 1e-8
    rough = drift(model, None, lambda snapshot: noisy(snapshot, 1.0), Journey(IDS, 8, 8, 2))
    assert rough[0].kl_nats > 1e-6


def test_break_even_lies_where_the_lines_cross() -> None:
    lengths = [100, 200, 400]
    assert break_even_tokens(lengths, [2.0, 2.0, 2.0], [1.0, 2.0, 4.0]) == 200
    assert break_even_tokens(lengths, [2.5, 2.5, 2.5], [1.0, 2.0, 4.0]) == 250
    assert break_even_tokens(lengths, [0.5, 0.5, 0.5], [1.0, 2.0, 4.0]) == 100
    assert break_even_tokens(lengths, [5.0, 5.0, 5.0], [1.0, 2.0, 4.0]) is None


def test_links_and_memories_are_plain_arithmetic() -> None:
    assert link_seconds(1.25e6, 0.5) == {"10": 1.5, "100": 0.6, "1000": 0.51}
    assert longest_context_tokens(1000.0)["4 GB"] == 4_000_000


def test_sensitive_positions_lie_above_half_a_nat() -> None:
    assert sensitive_positions(torch.tensor([0.1, 0.5, 0.51])).tolist() == [False, False, True]


def test_peak_memory_sees_an_allocation() -> None:
    def use() -> int:
        block = np.ones(40_000_000, np.uint8)
        time.sleep(0.02)
        return int(block[::4096].sum())

    result, peak = peak_bytes(use)
    assert result == len(range(0, 40_000_000, 4096))
    if peak is not None:
        assert 20e6 < peak < 200e6


def test_memory_that_a_first_call_left_behind_does_not_hide_the_second() -> None:
    blocks = [torch.ones(1000) for _ in range(20_000)]  # 80 MB below the allocator's threshold for mapping
    del blocks
    held = peak_bytes(lambda: float(sum(block.sum() for block in [torch.ones(1000) for _ in range(20_000)])))[1]
    assert held is None or held > 40e6


def test_curve_fractions_rise() -> None:
    from kvcompress_eval.suite.aggregate import CURVE

    assert all(a < b for a, b in itertools.pairwise(CURVE))
