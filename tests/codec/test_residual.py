"""The residual brings a cache as near as asked, survives bytes, and is refused where it is not one."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.residual import Residual
from kvcompress.codec.settings import RESIDUAL_QP
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.hf import capture
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.codec.conftest import random_sessions
from tinyvae.quantize import LEVELS

QP = 80


def error(exact: KVSnapshot, decoded: KVSnapshot) -> float:
    pairs = zip(exact.layers, decoded.layers, strict=True)
    return max(float((a.keys - b.keys).abs().max()) + float((a.values - b.values).abs().max()) for a, b in pairs)


def test_finer_residuals_come_nearer_and_are_larger(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    files = [codec.encode(snapshot, QP)]
    files += [codec.encode(snapshot, QP, residual_qp=finer) for finer in (60, 90, 120, 200, HIGHEST_QP)]
    errors = [error(snapshot, codec.decode(from_bytes(to_bytes(file)))) for file in files]
    sizes = [len(to_bytes(file)) for file in files]
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert errors[-1] < 1e-3 < errors[0]


def test_symbols_survive_bytes(codec: TinyVAECodec) -> None:
    generator = torch.Generator().manual_seed(0)
    width = torch.logspace(-3, 3, 40)
    weighted = torch.randn(30, 40, generator=generator) * width
    weighted[3, 5] = 1e6  # an escape
    ours = Residual.of(weighted, torch.full((30, 1), 0.1))
    again = Residual.from_bytes(ours.to_bytes(codec.bank), 30, 40, codec.bank)
    assert torch.equal(ours.symbols, again.symbols)
    assert torch.equal(ours.levels, again.levels)
    near = ours.weighted(torch.full((30, 1), 0.1), codec.vae(0).centroids) - weighted
    assert float(near[:, ours.levels[0] >= 0].abs().max()) <= 0.1 * 1.2


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_short_sessions_have_residuals_too(codec: TinyVAECodec, model: Any, tokens: int) -> None:
    short = capture(model, random_sessions(1, 64)[0][:tokens])
    decoded = codec.decode(from_bytes(to_bytes(codec.encode(short, QP, residual_qp=200))))
    assert decoded.tokens == tokens
    if tokens:
        assert error(short, decoded) < error(short, codec.decode(codec.encode(short, QP)))


def test_bits_of_tokens_count_the_residual(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    file = codec.encode(snapshot, QP, residual_qp=100)
    coded = sum(len(data) for name, data in file.sections.items() if name.startswith(("latents", "residual")))
    assert sum(codec.stored_bits(file)) / 8 == pytest.approx(coded, rel=0.1)


def test_rates_that_are_none_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    for qp in (-1, HIGHEST_QP + 1):
        with pytest.raises(InputError, match=f"residual QP {qp} is not in"):
            codec.encode(snapshot, QP, residual_qp=qp)


def changed(file: Encoded, sections: dict[str, bytes] | None = None, **told: Any) -> Encoded:
    return dataclasses.replace(file, sections={**file.sections, **(sections or {})}, settings={**file.settings, **told})


def test_files_whose_setting_and_sections_disagree_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    file, plain = codec.encode(snapshot, QP, residual_qp=100), codec.encode(snapshot, QP)
    for bad in (
        dataclasses.replace(file, settings=plain.settings),
        dataclasses.replace(file, sections=plain.sections),
        changed(plain, {}, residual_rate=100),
        *(changed(file, {}, residual_rate=qp) for qp in (-1, HIGHEST_QP + 1, 1.5, True, "100", None)),
    ):
        with pytest.raises(FormatError):
            codec.decode(bad)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cut_sections_and_noise_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot, data: st.DataObject) -> None:
    """Checksums of the container find damage first; what gets past them must not crash."""
    file = codec.encode(snapshot, QP, residual_qp=100)
    whole = file.sections["residual.0"]
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(FormatError):
        codec.decode(changed(file, {"residual.0": whole[:cut]}))
    noise = data.draw(st.binary(max_size=64))
    with pytest.raises(FormatError):
        codec.decode(changed(file, {"residual.0": noise}))


def test_levels_that_are_none_are_refused(codec: TinyVAECodec) -> None:
    for level in (np.full(7, 20), np.full(9, 20), np.full(8, LEVELS + 1), np.zeros(100_000)):
        packed = zlib.compress(level.astype(np.uint8).tobytes())
        section = struct.pack("<I", len(packed)) + packed + bytes(4)
        with pytest.raises(FormatError, match="levels are not those of 8 channels"):
            Residual.from_bytes(section, 4, 8, codec.bank)


def test_a_layer_of_huge_values_comes_back(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    first, *others = snapshot.layers
    huge = LayerKV(first.keys, first.values * 1e4, first.positions)
    loud = dataclasses.replace(snapshot, layers=(huge, *others))
    plain, near = codec.encode(loud, QP), codec.encode(loud, QP, residual_qp=QP)
    assert RESIDUAL_QP in near.settings
    assert error(loud, codec.decode(near)) < error(loud, codec.decode(plain))
