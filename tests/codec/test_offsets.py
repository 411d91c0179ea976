"""Tokens are not all coded alike: offsets by id and age from the codec, and offsets that a plan chooses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import FormatError, InputError
from kvcompress.format.ans import decode_choices, encode_choices
from kvcompress.format.container import load, save
from kvcompress.snapshot import KVSnapshot
from tests.codec.test_laws import same, weighted_error
from tinyvae.offsets import AGES, LARGEST_OFFSET, PRIOR_ONLY, age_classes, fit_offsets, worn_offset

QP = 100


@given(st.lists(st.sampled_from([PRIOR_ONLY, -16, 0, 7, 16]), max_size=300))
def test_choices_survive_bytes(values: list[int]) -> None:
    chosen = np.array(values, np.int16)
    assert np.array_equal(decode_choices(encode_choices(chosen), len(chosen)), chosen)


@given(st.binary(max_size=80), st.integers(0, 40))
def test_hostile_choices_end_in_a_typed_error(data: bytes, tokens: int) -> None:
    try:
        found = decode_choices(data, tokens)
    except FormatError:
        return
    assert found.shape == (tokens,)


def test_every_cut_of_a_list_of_choices_is_refused() -> None:
    data = encode_choices(np.array([0, 16, 16, -16] * 40, np.int16))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            decode_choices(data[:length], 160)


def test_age_classes_grow_by_half_octaves() -> None:
    assert age_classes(9).tolist() == [5, 5, 4, 4, 3, 3, 2, 1, 0]
    assert int(age_classes(1_000_000).max()) == AGES - 1


def test_offsets_survive_bytes_and_decode_equals_reconstruct(
    codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path
) -> None:
    offsets = torch.tensor([0, 16, -16, PRIOR_ONLY]).repeat(20)[: snapshot.tokens]
    save(tmp_path / "a.kvz", codec.encode(snapshot, QP, offsets=offsets))
    decoded = codec.decode(load(tmp_path / "a.kvz"))
    assert same(decoded, codec.reconstruct(snapshot, QP, offsets))
    assert not same(decoded, codec.reconstruct(snapshot, QP))


def test_a_finer_token_is_nearer_and_costs_more_and_prior_only_costs_nothing(
    codec: TinyVAECodec, snapshot: KVSnapshot
) -> None:
    def cost_and_error(offset: int) -> tuple[float, float]:
        offsets = torch.zeros(snapshot.tokens, dtype=torch.int64)
        offsets[40] = offset
        bits = codec.token_bits(snapshot, QP, offsets)[40]
        return bits, weighted_error(codec, snapshot, codec.reconstruct(snapshot, QP, offsets))

    costs, errors = zip(*(cost_and_error(offset) for offset in (PRIOR_ONLY, -48, 0, 48)), strict=True)
    assert costs[0] == 0
    assert list(costs) == sorted(costs)
    assert list(errors) == sorted(errors, reverse=True)


@pytest.mark.parametrize("offsets", [torch.zeros(3), torch.full((80,), HIGHEST_QP + 1), torch.full((80,), -5000)])
def test_offsets_that_do_not_fit_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot, offsets: torch.Tensor) -> None:
    with pytest.raises(InputError):
        codec.encode(snapshot, QP, offsets=offsets)


def test_offsets_follow_the_worth_of_ids_and_ages() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(40):
        ids, ages = torch.randint(0, 8, (400,), generator=generator), age_classes(400)
        rows.append((ids, ages, torch.where(ids == 3, 4.0, 1.0) * torch.where(ages < 6, 16.0, 1.0)))
    of_id, of_age = fit_offsets(rows, 8, exponent=1.0)
    assert of_id.dtype == of_age.dtype == torch.int8
    assert abs(int(of_id[3] - of_id[2]) - 16) <= 3  # four times the worth: half the step
    assert abs(int(of_age[2] - of_age[10]) - 32) <= 3
    assert int(of_age.abs().max()) <= LARGEST_OFFSET
    halved = fit_offsets(rows, 8, exponent=0.5)[1]
    assert abs(int(halved[2] - halved[10]) - 16) <= 2


@pytest.mark.parametrize(("start", "end"), [(1, 2), (32, 64), (100, 164), (1000, 1032), (5, 300)])
def test_what_grows_old_is_worth_the_mean_of_its_ages(start: int, end: int) -> None:
    offsets = torch.arange(AGES, 0, -1).to(torch.int8) * 2
    classes, count = age_classes(end).tolist()[::-1], end - start
    found = []
    for age in range(count):
        own = [int(offsets[classes[later]]) for later in range(age, end, count)]
        worth = sum(2 ** (offset / 8) for offset in own) / len(own)
        found.append(8 * math.log2(worth) - int(offsets[classes[age]]))
    assert worn_offset(offsets, start, end) == min(round(sum(found) / count), 0)
    assert worn_offset(torch.zeros_like(offsets), start, end) == 0
    assert worn_offset(-offsets, start, end) == 0
