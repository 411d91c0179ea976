from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.errors import FormatError
from kvcompress.format.ans import TableBank, decode_symbols, encode_symbols
from tinyvae.quantize import LEVELS, scale_of_level
from tinyvae.tables import TABLE_ENTRIES, TABLE_TOTAL, build_tables, freeze_counts


@pytest.fixture(scope="module")
def bank() -> TableBank:
    samples = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    counts, offsets, _ = build_tables(samples)
    return TableBank(counts.numpy(), offsets.numpy())


def drawn(rng: np.random.Generator, levels: np.ndarray) -> np.ndarray:
    scales = np.array([scale_of_level(level) for level in range(LEVELS)])
    scale = scales[np.maximum(levels, 0)]
    return np.where(levels < 0, 0, np.rint(rng.laplace(0, 1, levels.shape) * scale)).astype(np.int32)


def test_every_table_sums_to_the_total_and_gives_every_symbol_a_chance(bank: TableBank) -> None:
    assert len(bank.counts) == TABLE_ENTRIES == bank.offsets[-1]
    for level in range(LEVELS):
        table = bank.counts[bank.offsets[level] : bank.offsets[level + 1]]
        assert table.sum() == TABLE_TOTAL
        assert table.min() >= 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(lambda w: sum(w) > 0))
def test_freezing_keeps_the_sum_and_the_order_of_large_weights(weights: list[float]) -> None:
    counts = freeze_counts(np.array(weights))
    assert counts.sum() == TABLE_TOTAL
    assert counts.min() >= 1
    assert counts[int(np.argmax(weights))] == counts.max()


def test_freezing_refuses_more_entries_than_quanta() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        freeze_counts(np.ones(20), total=10)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_symbols_survive_bytes(bank: TableBank, tokens: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(-1, LEVELS, (tokens, rank)).astype(np.int32)
    symbols = drawn(rng, levels)
    assert np.array_equal(decode_symbols(encode_symbols(symbols, levels, bank), levels, bank), symbols)


def test_symbols_beyond_the_table_survive_as_escapes(bank: TableBank) -> None:
    levels = np.array([[0, 20, 159, 0, -1]], np.int32)
    symbols = np.array([[2**30, -(2**31) + 1, 100_000, -7, 0]], np.int32)
    assert np.array_equal(decode_symbols(encode_symbols(symbols, levels, bank), levels, bank), symbols)


def test_code_lengths_bound_the_stream(bank: TableBank) -> None:
    rng = np.random.default_rng(3)
    levels = np.repeat(rng.integers(0, 120, (1, 60)), 500, 0).astype(np.int32)
    symbols = drawn(rng, levels)
    ideal_bits = bank.code_lengths(symbols, levels).sum()
    real_bits = 8 * len(encode_symbols(symbols, levels, bank))
    assert ideal_bits <= real_bits <= 1.002 * ideal_bits + 128


def test_stream_of_known_symbols_is_known_bytes() -> None:
    """The same bytes on every machine: integers in, integers out."""
    shares = np.array([1, 2, 3, 5, 8, 16, 32, 64, 32, 16, 8, 5, 3, 2, 1, 58], np.float64)
    uniform = TableBank(
        np.tile(freeze_counts(shares), LEVELS).astype(np.int32), np.arange(LEVELS + 1, dtype=np.int32) * 16
    )
    levels = np.array([[64, 3, -1], [64, 3, 90], [-1, 3, 64], [64, 64, 64]], np.int32)
    symbols = np.array([[0, 1, 0], [2, 0, -7], [0, -3, 1], [1, 100, 0]], np.int32)
    assert encode_symbols(symbols, levels, uniform).hex() == KNOWN_STREAM


KNOWN_STREAM = "935d9d24aa7400006400000001000000"


def test_cut_or_foreign_streams_are_refused_or_differ_but_never_crash(bank: TableBank) -> None:
    rng = np.random.default_rng(5)
    levels = rng.integers(0, 100, (20, 10)).astype(np.int32)
    data = encode_symbols(drawn(rng, levels), levels, bank)
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            decode_symbols(data[:cut], levels, bank)
    for _ in range(200):
        noise = rng.bytes(4 * int(rng.integers(0, 40)))
        try:
            decode_symbols(noise, levels, bank)
        except FormatError:
            continue
