"""The score that fails loudly, and the tails: each against the definition, computed plainly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.metrics.fidelity import TIERS
from kvcompress_eval.suite.bootstrap import resampled
from kvcompress_eval.suite.perturb import PERTURBATIONS
from kvcompress_eval.suite.score import harmonic, score
from kvcompress_eval.suite.tails import NORMAL_95, STEP_NATS, tails, wilson

SHARES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """Return the row of a session whose figures follow from its number."""
    kl = [0.001 * (1 + number), 0.002, 0.003]
    return {
        "per_token_kl_nats": kl,
        "worth_nats": 0.4 + 0.1 * number,
        "first_divergence_tokens": 20 + number,
        "trajectory_tokens": 48,
        "perturbed": {rule: {"kl_nats": 0.01 * (1 + at), "worth_nats": 0.5} for at, rule in enumerate(PERTURBATIONS)},
        "questions": [[100, True, True], [200, number > 0, True], [300, False, False]],
        "planted": [],
    } | changes


def rows(count: int = 4, **changes: Any) -> list[dict[str, Any]]:
    return [row(number, **changes) for number in range(count)]


@given(SHARES)
@settings(deadline=None)
def test_the_harmonic_mean_lies_between_the_least_part_and_the_plain_mean(parts: list[float]) -> None:
    found = harmonic(dict(enumerate(parts)))  # type: ignore[arg-type]
    assert found is not None
    assert min(parts) - 1e-12 <= found <= sum(parts) / len(parts) + 1e-12


@given(SHARES, st.integers(0, 4))
@settings(deadline=None)
def test_a_part_that_is_lost_loses_all_and_one_that_is_missing_leaves_no_score(parts: list[float], at: int) -> None:
    held: dict[str, float | None] = {f"part {index}": part for index, part in enumerate(parts)}
    name = f"part {at % len(parts)}"
    assert harmonic(held | {name: 0.0}) == 0.0
    assert harmonic(held | {name: None}) is None
    assert harmonic(held | {"lost": 0.0, name: None}) is None
    assert harmonic({}) is None


def test_each_part_is_a_share_of_sums_over_sessions() -> None:
    found = score(rows())
    parts = {name: part["mean"] for name, part in found["components"].items()}
    kl = [sum(one["per_token_kl_nats"]) / 3 for one in rows()]
    assert parts["kl"] == pytest.approx(1 - sum(kl) / sum(one["worth_nats"] for one in rows()))
    assert parts["trajectory"] == pytest.approx((20 + 21 + 22 + 23) / (4 * 48))
    assert parts["recall"] == pytest.approx(7 / 8)  # what the exact cache does not give either does not count
    assert parts["perturbed"] == pytest.approx(1 - 0.03 / 0.5)  # the worst of the rules
    assert found["harmonic"]["mean"] == pytest.approx(4 / sum(1 / part for part in parts.values()))
    for part in (found["harmonic"], *found["components"].values()):
        assert 0 <= part["low"] <= part["mean"] <= part["high"] <= 1


def test_one_rule_that_breaks_the_model_makes_the_score_zero() -> None:
    broken = {rule: {"kl_nats": 0.6 if rule == "typos" else 0.0, "worth_nats": 0.5} for rule in PERTURBATIONS}
    found = score(rows(perturbed=broken))
    assert found["components"]["perturbed"]["mean"] == 0.0
    assert found["harmonic"]["mean"] == 0.0


def test_lost_recall_makes_the_score_zero_and_unasked_recall_leaves_none() -> None:
    lost = score(rows(questions=[[100, False, True]]))
    assert lost["harmonic"]["mean"] == 0.0
    for nothing in ([], [[100, True, False]]):  # not asked, or beyond the exact cache as well
        absent = score(rows(questions=nothing))
        assert absent["harmonic"] is None
        assert absent["components"]["recall"] is None
        assert absent["components"]["kl"] is not None


def test_facts_that_the_suite_planted_count_as_those_of_the_session() -> None:
    planted = score(rows(questions=[], planted=[[10, True, True], [20, False, True]]))
    assert planted["components"]["recall"]["mean"] == 0.5


def test_without_prompts_or_path_there_is_no_score() -> None:
    for changes in ({"perturbed": {}}, {"first_divergence_tokens": None, "trajectory_tokens": None}):
        assert score(rows(**changes))["harmonic"] is None


def test_tails_are_what_a_loop_over_sessions_finds() -> None:
    generator = np.random.default_rng(2)
    held = [
        {"per_token_kl_nats": (scale * generator.exponential(size=200)).tolist()} for scale in (0.001, 0.01, 0.05, 0.2)
    ]
    found = tails(held)
    every = [np.array(one["per_token_kl_nats"]) for one in held]
    assert found["kl_p999_nats"]["mean"] == pytest.approx(np.quantile(np.concatenate(every), 0.999))
    assert found["worst_step_nats"]["mean"] == max(map(np.max, every))
    assert found["sessions_with_bad_step"]["mean"] == sum(values.max() > STEP_NATS for values in every) / 4
    for tier in TIERS:
        beyond = [float(values.mean() > tier.max_kl_nats) for values in every]
        estimate = found["sessions_beyond"][tier.name]
        assert estimate["mean"] == sum(beyond) / 4
        assert (estimate["low"], estimate["high"]) == wilson(int(sum(beyond)), 4)
    drawn = [np.quantile(np.concatenate([every[index] for index in indices]), 0.999) for indices in resampled(4)[:200]]
    interval = found["kl_p999_nats"]["low"], found["kl_p999_nats"]["high"]
    assert interval == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert found["positions"] == 800
    assert found["worst_step_nats"]["low"] is None


@given(st.integers(1, 40), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_wilsons_interval_ends_where_the_share_is_a_rare_draw(of: int, share: float) -> None:
    count = round(share * of)
    low, high = wilson(count, of)
    assert 0 <= low <= count / of <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(count / of - end) == pytest.approx(NORMAL_95 * math.sqrt(end * (1 - end) / of), abs=1e-9)
    assert wilson(0, of)[1] > 0


def test_the_tail_of_one_session_has_no_interval() -> None:
    found = tails(rows(1))
    assert found["worst_step_nats"]["low"] is None
    assert found["sessions_beyond"]["transparent"] == {"mean": 0.0, "standard_error": None, "low": None, "high": None}
