"""A slice of the fuzzer's run: the same cases each time, and with --slow a minute of others."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from eval.fuzz.mutate import bytes_changed, value_changed
from eval.fuzz.run import FAILED, fuzz

CASES = 300


def test_first_cases_are_refused_or_read(tmp_path: Path) -> None:
    counts = fuzz(CASES, 0, tmp_path, 1)
    told = [path.read_text() for path in tmp_path.glob("failures/*.txt")]
    assert not told
    assert sum(counts.values()) == CASES
    assert not any(ended == FAILED for _, ended in counts)
    assert {kind.split()[0] for kind, _ in counts} == {
        "kvz", "positions", "raw", "evidence", "history", "sessions", "shard", "codec",
    }  # fmt: skip
    assert fuzz(CASES, 0, tmp_path, 1) == counts  # nothing is left to do


@pytest.mark.slow
def test_a_minute_of_cases_is_refused_or_read(tmp_path: Path) -> None:
    seed, begun = 1, time.monotonic()
    while time.monotonic() - begun < 60:
        counts = fuzz(3000, seed, tmp_path / str(seed), 2)
        assert not any(ended == FAILED for _, ended in counts), list(tmp_path.glob("*/failures/*.txt"))
        seed += 1


def test_cases_are_the_same_for_the_same_chance() -> None:
    value = {"a": [1, {"b": "x"}], "c": None}
    for seed in range(50):
        assert bytes_changed(Random(seed), b"abcdefgh") == bytes_changed(Random(seed), b"abcdefgh")
        assert repr(value_changed(Random(seed), value)) == repr(value_changed(Random(seed), value))
    assert value == {"a": [1, {"b": "x"}], "c": None}
