"""Sizes at equal KL: read off as by hand, never beyond a family's points, with intervals over sessions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kvcompress_eval.suite.bootstrap import resampled
from kvcompress_eval.suite.equal_kl import equal_kl, frontier, ratio_at
from kvcompress_eval.suite.published import FIXED_RATE, published
from kvcompress_eval.suite.report.facts import promised_word
from kvcompress_eval.suite.report.palette import looks
from kvcompress_eval.suite.report.series import promise_over_hops

RAW = 1_000_000.0


def rows(ratio: float, kl: float, spread: tuple[float, ...] = (1.0,)) -> list[dict[str, Any]]:
    """Return a row a session: KL and file grow by each session's factor."""
    return [
        {"per_token_kl_nats": [kl * f, kl * f], "raw_bytes": RAW, "file_bytes": RAW / ratio * math.sqrt(f)}
        for f in spread
    ]


def test_a_family_is_read_off_on_a_line_in_logarithms() -> None:
    points = [(0.001, 4.0), (0.1, 16.0)]
    assert ratio_at(points, 0.01) == pytest.approx(8.0)
    assert ratio_at(points[::-1], 0.001) == pytest.approx(4.0)
    assert ratio_at(points, 0.1) == pytest.approx(16.0)
    assert ratio_at(points, 0.0009) is None
    assert ratio_at(points, 0.11) is None
    assert ratio_at(points[:1], 0.001) is None


def test_points_that_another_beats_do_not_count_against_a_baseline() -> None:
    worse = [(0.001, 3.0), (0.005, 2.0), (0.1, 15.0), (0.0, 99.0)]
    best = [(0.001, 4.0), (0.1, 16.0)]
    assert frontier([*worse, *best]) == best
    assert ratio_at([*worse, *best], 0.01) == pytest.approx(8.0)


def test_the_baseline_is_as_much_larger_as_its_curve_says() -> None:
    ours = {"tinyvae-high": rows(40.0, 0.01)}
    baselines = {"far": [rows(4.0, 0.001), rows(16.0, 0.1)], "coarse": [rows(9.0, 0.02), rows(12.0, 0.2)]}
    (found,) = equal_kl(ours, baselines)
    assert (found["codec"], found["family"]) == ("tinyvae-high", "far")
    assert found["their_size_ratio"]["mean"] == pytest.approx(8.0)
    assert found["times_larger"] == {"mean": pytest.approx(5.0), "standard_error": None, "low": None, "high": None}


def test_intervals_resample_sessions_of_both_sides_together() -> None:
    spread = (0.5, 1.0, 2.0, 3.0)
    ours, fine, coarse = rows(40.0, 0.01, spread), rows(4.0, 0.0005, spread[::-1]), rows(16.0, 0.3, spread)
    (found,) = equal_kl({"ours": ours}, {"far": [fine, coarse]})
    drawn = []
    for indices in resampled(4):
        own, low, high = (
            (
                np.mean([held[i]["per_token_kl_nats"][0] for i in indices]),
                4 * RAW / sum(held[i]["file_bytes"] for i in indices),
            )
            for held in (ours, fine, coarse)
        )
        place = (np.log(own[0]) - np.log(low[0])) / (np.log(high[0]) - np.log(low[0]))
        drawn.append(own[1] / np.exp((1 - place) * np.log(low[1]) + place * np.log(high[1])))
    interval = found["times_larger"]["low"], found["times_larger"]["high"]
    assert interval == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert interval[0] < found["times_larger"]["mean"] < interval[1]


def test_families_look_unlike_however_many_there_are() -> None:
    found = looks(["tinyvae", "kvtc", *(f"family {index}" for index in range(18))])
    seen = [(look.colour, look.marker, look.fill) for look in found.values()]
    assert len(set(seen)) == len(seen) == 20


def test_published_figures_are_of_fixed_rates_and_say_where_they_come_from() -> None:
    assert set(FIXED_RATE) >= {"kivi", "turboquant"}
    for one in published():
        assert "README" in one["source"]
        assert len(one["stored"]) == len(one["size_ratio"]) == len(one["kl_nats"])


def test_a_word_is_held_to_its_own_bounds_at_every_hop() -> None:
    assert promised_word({"name": "tinyvae-high", "family": "tinyvae"}) == "high"
    assert promised_word({"name": "tinyvae:m=3-high", "family": "tinyvae:m=3"}) == "high"
    assert promised_word({"name": "tinyvae-r40", "family": "tinyvae"}) is None
    assert promised_word({"name": "kivi-high", "family": "kivi"}) is None
    hops = [{"hop": hop, "tier": tier} for hop, tier in ((1, "transparent"), (2, "high"), (3, None))]
    assert promise_over_hops(hops[:2], "high") == "kept at all 2"
    assert promise_over_hops(hops, "high") == "broken at 1 of 3, first 3"
    assert promise_over_hops(hops, "transparent") == "broken at 2 of 3, first 2"
