"""Which decoded tokens a token is predicted from: integers, the same however they are found."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.neighbours import CODING_PASSES, MATCHES, SOURCES, coding_passes, pass_numbers

IDS = st.lists(st.integers(0, 5), max_size=60)


def naive_nearest(keys: list[object], numbers: list[int], row: int) -> int:
    """The nearest token of an earlier pass with the same key, the earlier of two as near; the length if none."""
    known = [t for t in range(len(keys)) if numbers[t] < numbers[row] and keys[t] == keys[row]]
    return min(known, key=lambda t: (abs(t - row), t), default=len(keys))


@given(IDS)
def test_sources_are_what_a_plain_search_finds(ids: list[int]) -> None:
    numbers = pass_numbers(len(ids)).tolist()
    pairs: list[object] = [None if t == 0 else (ids[t - 1], ids[t]) for t in range(len(ids))]
    for coding_pass in coding_passes(torch.tensor(ids, dtype=torch.int64)):
        assert coding_pass.sources.shape == (SOURCES, len(coding_pass.rows))
        for column, row in enumerate(coding_pass.rows.tolist()):
            before, after, same, pair = coding_pass.sources[:, column].tolist()
            if coding_pass.number == 0:
                assert {before, after, same, pair} == {len(ids)}
                continue
            stride = 4 >> coding_pass.number
            assert before == row - stride
            assert after == min(row + stride, len(ids)) or after == len(ids)
            assert same == naive_nearest(list(ids), numbers, row)
            assert pair == naive_nearest(pairs, numbers, row)
            assert coding_pass.matches[column] == (same < len(ids)) + (pair < len(ids))


@given(IDS)
def test_every_token_is_decoded_once_and_looks_only_at_what_is_known(ids: list[int]) -> None:
    known: set[int] = set()
    for coding_pass in coding_passes(torch.tensor(ids, dtype=torch.int64)):
        assert set(coding_pass.sources.flatten().tolist()) <= known | {len(ids)}
        assert not known & set(coding_pass.rows.tolist())
        assert coding_pass.rows.tolist() == list(range(len(ids)))[coding_pass.span]
        assert all(0 <= match < MATCHES for match in coding_pass.matches.tolist())
        known |= set(coding_pass.rows.tolist())
    assert known == set(range(len(ids)))


def test_phases_halve_the_distance() -> None:
    assert pass_numbers(9).tolist() == [0, 2, 1, 2, 0, 2, 1, 2, 0]
    assert [coding_pass.number for coding_pass in coding_passes(torch.arange(9))] == list(range(CODING_PASSES))
