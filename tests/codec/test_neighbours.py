"""Which decoded tokens a token is predicted from: integers, the same however they are found."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.neighbours import MATCHES, PHASES, SOURCES, phase_numbers, phases

IDS = st.lists(st.integers(0, 5), max_size=60)


def naive_nearest(keys: list[object], numbers: list[int], row: int) -> int:
    """The nearest token of an earlier phase with the same key, the earlier of two as near; the length if none."""
    known = [t for t in range(len(keys)) if numbers[t] < numbers[row] and keys[t] == keys[row]]
    return min(known, key=lambda t: (abs(t - row), t), default=len(keys))


@given(IDS)
def test_sources_are_what_a_plain_search_finds(ids: list[int]) -> None:
    numbers = phase_numbers(len(ids)).tolist()
    pairs: list[object] = [None if t == 0 else (ids[t - 1], ids[t]) for t in range(len(ids))]
    for phase in phases(torch.tensor(ids, dtype=torch.int64)):
        assert phase.sources.shape == (SOURCES, len(phase.rows))
        for column, row in enumerate(phase.rows.tolist()):
            before, after, same, pair = phase.sources[:, column].tolist()
            if phase.number == 0:
                assert {before, after, same, pair} == {len(ids)}
                continue
            stride = 4 >> phase.number
            assert before == row - stride
            assert after == min(row + stride, len(ids)) or after == len(ids)
            assert same == naive_nearest(list(ids), numbers, row)
            assert pair == naive_nearest(pairs, numbers, row)
            assert phase.matches[column] == (same < len(ids)) + (pair < len(ids))


@given(IDS)
def test_every_token_is_decoded_once_and_looks_only_at_what_is_known(ids: list[int]) -> None:
    known: set[int] = set()
    for phase in phases(torch.tensor(ids, dtype=torch.int64)):
        assert set(phase.sources.flatten().tolist()) <= known | {len(ids)}
        assert not known & set(phase.rows.tolist())
        assert phase.rows.tolist() == list(range(len(ids)))[phase.span]
        assert all(0 <= match < MATCHES for match in phase.matches.tolist())
        known |= set(phase.rows.tolist())
    assert known == set(range(len(ids)))


def test_phases_halve_the_distance() -> None:
    assert phase_numbers(9).tolist() == [0, 2, 1, 2, 0, 2, 1, 2, 0]
    assert [phase.number for phase in phases(torch.arange(9))] == list(range(PHASES))
