"""A minute of the fuzzer's run: the first cases of all kinds, and with --slow a minute of others."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from eval.fuzz.mutate import bytes_changed, value_changed
from eval.fuzz.run import FAILED, Worker, fuzz

LEAST_ROUNDS, SECONDS = 12, 60.0
"""Rounds of one case of each kind that run in any case, and how long more are begun."""


def test_a_minute_of_cases_of_all_kinds_is_refused_or_read(capsys: pytest.CaptureFixture[str]) -> None:
    worker, begun, rounds = Worker(), time.monotonic(), 0
    counts, failed, kinds = Counter[tuple[str, str]](), list[str](), len(worker.subjects)
    while rounds < LEAST_ROUNDS or time.monotonic() - begun < SECONDS:
        found, failures = worker.run(0, range(rounds * kinds, (rounds + 1) * kinds))
        counts, rounds = counts + found, rounds + 1
        failed += [f"{one.number} {one.kind}: {one.told}" for one in failures]
    with capsys.disabled():
        print(f" {counts.total():,} cases of {kinds} kinds ", end="")
    assert not failed
    assert {kind for kind, _ in counts} == {subject.name for subject in worker.subjects}
    assert all(n >= LEAST_ROUNDS for n in Counter(kind for kind, _ in counts.elements()).values())


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    counts = fuzz(60, 0, tmp_path, 1)
    assert sum(counts.values()) == 60
    assert fuzz(60, 0, tmp_path, 1) == counts  # nothing is left to do


@pytest.mark.slow
def test_a_minute_of_other_cases_is_refused_or_read(tmp_path: Path) -> None:
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
