"""Exact tokens survive bytes in every cache dtype and beside every codec; a damaged section is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kvcompress.codec.exact_tokens import EXACT, WithExact, only, with_exact
from kvcompress.codec.int8 import Int8Codec
from kvcompress.errors import FormatError, KVCompressError
from kvcompress.format.container import from_bytes, to_bytes
from kvcompress.hf import capture
from kvcompress.snapshot import KVSnapshot
from tests.hf.families import model_of, session


def recorded(dtype: str = "float32") -> KVSnapshot:
    return capture(model_of("llama", dtype), session(20))


def wanted(*tokens: int) -> torch.Tensor:
    chosen = torch.zeros(20, dtype=torch.bool)
    chosen[list(tokens)] = True
    return chosen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_tokens_come_back_bit_by_bit_and_the_others_as_their_codec_gives_them(dtype: str) -> None:
    snapshot = recorded(dtype)
    plain = Int8Codec().encode(snapshot)
    encoded = from_bytes(to_bytes(with_exact(plain, snapshot, wanted(0, 7, 19))))
    decoded, lossy = WithExact(Int8Codec()).decode(encoded), Int8Codec().decode(plain)
    for ours, exact, coded in zip(decoded.layers, snapshot.layers, lossy.layers, strict=True):
        for mine, true, rough in ((ours.keys, exact.keys, coded.keys), (ours.values, exact.values, coded.values)):
            for token in range(20):
                assert torch.equal(mine[:, token], (true if token in (0, 7, 19) else rough)[:, token])
            assert not torch.equal(mine, true)


def test_without_exact_tokens_nothing_is_added() -> None:
    snapshot = recorded()
    plain = Int8Codec().encode(snapshot)
    assert with_exact(plain, snapshot, wanted()) is plain
    assert torch.equal(WithExact(Int8Codec()).decode(plain).layers[0].keys, Int8Codec().decode(plain).layers[0].keys)


def test_a_cut_or_changed_section_is_refused() -> None:
    snapshot = recorded()
    encoded = with_exact(Int8Codec().encode(snapshot), snapshot, wanted(3, 4))
    data = encoded.sections[EXACT]
    for length in (*range(40), len(data) // 2, len(data) - 1):
        damaged = dataclasses.replace(encoded, sections={**encoded.sections, EXACT: data[:length]})
        with pytest.raises(KVCompressError):
            WithExact(Int8Codec()).decode(damaged)
    longer = dataclasses.replace(encoded, sections={**encoded.sections, EXACT: data + b"\0"})
    with pytest.raises(FormatError):
        WithExact(Int8Codec()).decode(longer)


def test_tokens_that_no_layer_holds_are_refused() -> None:
    snapshot = recorded()
    held = only(snapshot, wanted(1, 2, 3))
    encoded = with_exact(Int8Codec().encode(held), snapshot, wanted(9))
    with pytest.raises(FormatError, match="does not hold"):
        WithExact(Int8Codec()).decode(encoded)
