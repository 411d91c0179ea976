"""The measures against computations a reader can follow, and the edges of the tiers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.metrics.fidelity import (
    TIERS,
    compare_logits,
    first_divergence,
    kl_nats,
    perplexity,
    perplexity_ratio,
    rms_probability_change,
    tier_of,
    top_agreement,
)


def logits(seed: int, rows: int = 70, vocabulary: int = 11) -> Tensor:
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def probabilities(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


def test_kl_equals_its_definition() -> None:
    exact, decoded = logits(1), logits(2)
    expected = []
    for true_row, other_row in zip(exact.tolist(), decoded.tolist(), strict=True):
        true, other = probabilities(true_row), probabilities(other_row)
        expected.append(sum(p * math.log(p / q) for p, q in zip(true, other, strict=True)))
    assert kl_nats(exact, decoded).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kl_of_equal_logits_is_exactly_zero(dtype: torch.dtype) -> None:
    same = logits(3).to(dtype)
    assert kl_nats(same, same.clone()).count_nonzero() == 0


SEEDS = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(SEEDS, SEEDS, st.floats(1e-8, 50.0))
def test_kl_is_never_negative(seed: int, other: int, scale: float) -> None:
    exact = logits(seed, rows=4)
    assert bool((kl_nats(exact, exact + scale * logits(other, rows=4)) >= 0).all())


@settings(max_examples=40, deadline=None)
@given(SEEDS, SEEDS, st.floats(-300.0, 300.0))
def test_a_constant_added_to_the_logits_changes_no_measure(seed: int, other: int, shift: float) -> None:
    exact, decoded, targets = logits(seed, 5).double(), logits(other, 5).double(), torch.tensor([0, 3, 10, 5, 2])
    assert torch.allclose(kl_nats(exact + shift, decoded), kl_nats(exact, decoded), atol=1e-10)
    assert torch.allclose(kl_nats(exact, decoded + shift), kl_nats(exact, decoded), atol=1e-10)
    assert perplexity(exact + shift, targets) == pytest.approx(perplexity(exact, targets))
    change = rms_probability_change(exact, decoded, targets)
    assert rms_probability_change(exact, decoded + shift, targets) == pytest.approx(change, abs=1e-10)


def test_impossible_tokens_cost_nothing_unless_the_exact_side_expects_them() -> None:
    banned = torch.tensor([[1.0, 2.0, -math.inf]])
    assert kl_nats(banned, banned).tolist() == [0.0]
    true, other = probabilities([1.0, 2.0]), probabilities([1.0, 2.0, 0.5])
    expected = sum(p * math.log(p / q) for p, q in zip(true, other, strict=False))
    assert kl_nats(banned, torch.tensor([[1.0, 2.0, 0.5]])).tolist() == pytest.approx([expected])
    assert kl_nats(torch.tensor([[1.0, 2.0, 0.5]]), banned).tolist() == [math.inf]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_and_infinity_in_logits_are_refused(poison: float) -> None:
    good, bad = logits(1), logits(1)
    bad[3, 3] = poison
    targets = torch.zeros(70, dtype=torch.int64)
    for measure in (lambda: kl_nats(good, bad), lambda: kl_nats(bad, good), lambda: top_agreement(good, bad, 1)):
        with pytest.raises(InputError, match="NaN"):
            measure()
    with pytest.raises(InputError, match="NaN"):
        perplexity(bad, targets)


def test_logits_of_different_shapes_are_refused() -> None:
    for a, b in ((logits(1), logits(1)[:-1]), (logits(1)[0], logits(1)[0])):
        with pytest.raises(InputError, match="logits"):
            kl_nats(a, b)
    with pytest.raises(InputError, match="targets"):
        perplexity(logits(1), torch.zeros(69, dtype=torch.int64))


@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_agreement_equals_a_stable_sort(k: int) -> None:
    exact, decoded = logits(4).round(), logits(5).round()  # rounding makes ties
    hits = 0
    for true_row, other_row in zip(exact.tolist(), decoded.tolist(), strict=True):
        order = sorted(range(len(other_row)), key=lambda token: -other_row[token])
        hits += true_row.index(max(true_row)) in order[:k]
    assert top_agreement(exact, decoded, k) == pytest.approx(hits / 70)


def test_probability_measures_equal_their_definitions() -> None:
    exact, decoded = logits(6), logits(7)
    targets = torch.randint(11, (70,), generator=torch.Generator().manual_seed(8))
    true, other = (
        [probabilities(row)[target] for row, target in zip(side.tolist(), targets.tolist(), strict=True)]
        for side in (exact, decoded)
    )
    ppl_true, ppl_other = (math.exp(-sum(map(math.log, side)) / 70) for side in (true, other))
    assert perplexity(exact, targets) == pytest.approx(ppl_true, rel=1e-9)
    assert perplexity_ratio(exact, decoded, targets) == pytest.approx(ppl_other / ppl_true, rel=1e-9)
    squares = sum((q - p) ** 2 for p, q in zip(true, other, strict=True))
    assert rms_probability_change(exact, decoded, targets) == pytest.approx(math.sqrt(squares / 70), rel=1e-9)


def test_first_divergence_is_the_first_difference() -> None:
    assert first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert first_divergence([1, 2, 3], [1, 9, 3]) == 1
    assert first_divergence([1, 2], [1, 2, 3]) == 2
    assert first_divergence([], []) is None
    assert first_divergence([], [1]) == 0


@pytest.mark.parametrize("index", range(len(TIERS)))
def test_a_tier_holds_at_its_bounds_and_each_condition_alone_breaks_it(index: int) -> None:
    tier = TIERS[index]
    edge = (tier.max_kl_nats, tier.max_context_lost, tier.min_top1_agreement)
    below = TIERS[index + 1].name if index + 1 < len(TIERS) else None
    assert tier_of(*edge) == tier.name
    assert tier_of(edge[0] + 1e-9, edge[1], edge[2]) == below
    assert tier_of(edge[0], edge[1] + 1e-9, edge[2]) == below
    assert tier_of(edge[0], edge[1], edge[2] - 1e-9) == below


def test_nothing_measured_as_not_a_number_reaches_a_tier() -> None:
    assert tier_of(math.nan, 0.0, 1.0) is None
    assert tier_of(0.0, math.nan, 1.0) is None
    assert tier_of(0.0, 0.0, math.nan) is None


def test_the_report_is_the_sum_of_the_measures() -> None:
    exact, short = logits(9), logits(11)
    decoded = exact + 0.05 * logits(10)
    continuation = torch.randint(11, (70,), generator=torch.Generator().manual_seed(12))
    found, kl = compare_logits(exact, decoded, short, continuation), kl_nats(exact, decoded)
    ordered = sorted(kl.tolist())
    assert found.kl_nats == pytest.approx(sum(ordered) / 70)
    assert found.kl_p50_nats == pytest.approx((ordered[34] + ordered[35]) / 2)
    assert found.kl_max_nats == ordered[-1]
    assert ordered[-2] <= found.kl_p99_nats <= ordered[-1]
    assert found.context_lost == pytest.approx(found.kl_nats / float(kl_nats(exact, short).mean()))
    assert found.ppl_ratio == pytest.approx(perplexity_ratio(exact[:-1], decoded[:-1], continuation[1:]))
    assert found.tier == tier_of(found.kl_nats, found.context_lost, found.top1_agreement)
    assert list(found.per_token_kl_nats) == kl.tolist()
    assert found.continuation_tokens == 70


def test_a_loss_without_context_worth_is_infinite_and_null_in_json() -> None:
    exact, continuation = logits(9), torch.zeros(70, dtype=torch.int64)
    found = compare_logits(exact, logits(10), exact, continuation)
    assert found.context_lost == math.inf
    assert found.tier is None
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["context_lost"] is None
    assert data["kl_nats"] == found.kl_nats
    assert "per_token_kl_nats" not in data
    assert compare_logits(exact, exact, exact, continuation).context_lost == 0.0
