"""Laws of the int8 codec: bounds, edges, bytes, hostile files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.codec.int8 import LEAST_FLOAT16_STEP, MOST, Int8Codec, quantize_symmetric, rounded_up
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.registry import codec_of, load_snapshot
from kvcompress.codec.settings import CommonSettings
from kvcompress.errors import FormatError, InputError, KVCompressError, MismatchError
from kvcompress.format.container import Encoded, from_bytes, load, save, to_bytes
from kvcompress.hf import capture
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV
from tests.codec.conftest import random_sessions
from tests.format.examples import DTYPES, make_origin, make_snapshot, patterns, require_identical
from tests.hf.families import model_of, session

CODEC = Int8Codec()
HALF_ULP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def through_bytes(snapshot: KVSnapshot) -> KVSnapshot:
    return CODEC.decode(from_bytes(to_bytes(CODEC.encode(snapshot))))


def require_bound(exact: torch.Tensor, found: torch.Tensor, along: int, dtype: str) -> None:
    """Half a step: the largest magnitude of the group over 254, the step rounded up, the result rounded once more."""
    assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
    if not exact.numel():
        return
    wide, guess = exact.double(), found.double()
    largest = wide.abs().amax(along, keepdim=True)
    step = largest / MOST * (1 + 2.0**-4) + 2.0**-149  # float16 steps: a sixteenth at most; float32 steps: subnormal
    rounding = HALF_ULP[dtype] * largest + torch.finfo(CACHE_DTYPES[dtype]).smallest_normal * HALF_ULP[dtype]
    assert bool(((guess - wide).abs() <= step / 2 + 64 * 2.0**-149 + 2 * rounding).all())


def require_bounds(exact: KVSnapshot, found: KVSnapshot) -> None:
    assert torch.equal(found.token_ids, exact.token_ids)
    for ours, theirs in zip(exact.layers, found.layers, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        require_bound(ours.keys, theirs.keys, 1, exact.origin.dtype)
        require_bound(ours.values, theirs.values, 2, exact.origin.dtype)


@st.composite
def snapshots(draw: st.DrawFn) -> KVSnapshot:
    """Any finite numbers in any shape; a power of two takes them from the subnormal to the largest."""
    dtype, tokens = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 12))
    layers = []
    for _ in range(draw(st.integers(0, 3))):
        heads, key_size, value_size = (draw(st.integers(0, 4)) for _ in range(3))
        kept = sorted(draw(st.sets(st.integers(0, tokens - 1)))) if tokens else []
        parts = []
        for size in (key_size, value_size):
            shape, seed = (heads, len(kept), size), draw(st.integers(0, 2**31))
            wild = patterns(shape, dtype, seed)
            size_of = 2.0 ** draw(st.integers(-30, 14))
            plain = size_of * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            parts.append(wild if draw(st.booleans()) else plain.to(CACHE_DTYPES[dtype]).clamp(-60000, 60000))
        layers.append(LayerKV(*parts, torch.tensor(kept, dtype=torch.int64)))
    return KVSnapshot(tuple(layers), torch.arange(tokens), make_origin(len(layers), dtype, tokens))


@settings(max_examples=150, deadline=None)
@given(snapshots())
def test_any_snapshot_comes_back_within_half_a_step_and_the_second_time_as_the_first(snapshot: KVSnapshot) -> None:
    found = through_bytes(snapshot)
    require_bounds(snapshot, found)
    assert to_bytes(CODEC.encode(snapshot)) == to_bytes(CODEC.encode(snapshot))


@given(st.lists(st.floats(0, 3e38), min_size=1, max_size=20))
def test_steps_are_never_rounded_down_and_hardly_up(numbers: list[float]) -> None:
    steps = np.array(numbers)
    found = rounded_up(steps).astype(np.float64)
    assert (found >= steps).all()
    assert (found <= steps * (1 + 2.0**-4) + 2.0**-149).all()


def test_steps_are_float16_unless_that_would_lose_them() -> None:
    for steps, width in (([0.0, 1.0], 2), ([65504.0], 2), ([65505.0], 4), ([LEAST_FLOAT16_STEP], 2), ([1e-9, 1.0], 4)):
        assert rounded_up(np.array(steps)).dtype.itemsize == width


def test_the_largest_number_of_a_group_takes_the_last_code() -> None:
    codes, step = quantize_symmetric(np.array([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[63, -127, 0], [0, 0, 0]]
    assert step[1] == 0


def test_sections_are_as_long_as_the_specification_says() -> None:
    snapshot = make_snapshot(tokens=9, shapes=((2, 4, 4), (3, 5, 6)), dropped=(0, 2))
    encoded = CODEC.encode(snapshot)
    assert encoded.settings == {"shapes": [[1, 2, 4, 4], [1, 3, 5, 6]]}
    assert len(encoded.sections["codes"]) == snapshot.values_count == encoded.raw_bytes // 2
    data, blocks = encoded.sections["scales"], [2 * 4, 2 * 9, 3 * 5, 3 * 7]
    for count in blocks:
        data = data[1 + count * data[0] :]
    assert data == b""


def test_layers_of_one_shape_are_one_run() -> None:
    snapshot = make_snapshot(shapes=((2, 4, 4),) * 3 + ((1, 4, 4),), dropped=(0,) * 4)
    assert CODEC.encode(snapshot).settings["shapes"] == [[3, 2, 4, 4], [1, 1, 4, 4]]


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_edges_work(tokens: int) -> None:
    snapshot = make_snapshot(tokens=tokens, dropped=(0, 1))
    require_bounds(snapshot, through_bytes(snapshot))


@pytest.mark.parametrize("value", [0.0, -1.0, 3e38])
def test_constant_caches_come_back_almost_exactly(value: float) -> None:
    layer = LayerKV(torch.full((2, 8, 4), value), torch.full((2, 8, 4), -value), torch.arange(8))
    found = through_bytes(KVSnapshot((layer,), torch.arange(8), make_origin(1, "float32", 8)))
    assert torch.allclose(found.layers[0].keys, layer.keys, rtol=1e-3)
    assert torch.allclose(found.layers[0].values, layer.values, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_caches_of_any_family_come_back_within_bounds_at_half_the_size(family: str, dtype: str) -> None:
    snapshot = capture(model_of(family, dtype), session(60))
    encoded = CODEC.encode(snapshot)
    require_bounds(snapshot, CODEC.decode(encoded))
    assert sum(len(encoded.sections[name]) for name in ("codes", "scales")) < 0.75 * snapshot.raw_bytes


def test_files_need_no_codec_directory(tmp_path: Path, model: Any) -> None:
    snapshot = capture(model, random_sessions(1, 40)[0])
    save(tmp_path / "a.kvz", CODEC.encode(snapshot, CommonSettings(quality="usable")))
    assert isinstance(codec_of(load(tmp_path / "a.kvz"), "no-such-codec"), Int8Codec)
    require_identical(load_snapshot(tmp_path / "a.kvz", "no-such-codec"), through_bytes(snapshot))
    assert load(tmp_path / "a.kvz").settings["quality"] == "usable"


def test_other_codecs_files_are_refused() -> None:
    snapshot = make_snapshot()
    with pytest.raises(MismatchError, match="found int8"):
        CODEC.decode(LosslessCodec().encode(snapshot))
    with pytest.raises(MismatchError, match="abab"):
        CODEC.decode(replace(CODEC.encode(snapshot), codec_fingerprint="ab" * 32))


def test_heads_beyond_the_format_are_refused() -> None:
    layer = LayerKV(torch.zeros(1, 0, 65536), torch.zeros(1, 0, 1), torch.arange(0))
    with pytest.raises(InputError, match="65535"):
        CODEC.encode(KVSnapshot((layer,), torch.arange(1), make_origin(1, "float32", 1)))


def changed(encoded: Encoded, **sections: bytes | None) -> Encoded:
    merged = {**encoded.sections, **sections}
    return replace(encoded, sections={name: data for name, data in merged.items() if data is not None})


@pytest.mark.parametrize("name", ["codes", "scales"])
def test_section_cut_or_missing_or_too_long_is_refused(name: str) -> None:
    encoded = CODEC.encode(make_snapshot())
    data = encoded.sections[name]
    for size in range(len(data)):
        with pytest.raises(FormatError):
            CODEC.decode(changed(encoded, **{name: data[:size]}))
    for bad in (data + b"\0", None):
        with pytest.raises(FormatError, match=name):
            CODEC.decode(changed(encoded, **{name: bad}))
    with pytest.raises(FormatError, match="extra"):
        CODEC.decode(changed(encoded, extra=b""))


@pytest.mark.parametrize("name", ["tokens", "origin", "positions", "codes", "scales"])
def test_flipped_bit_behind_a_valid_checksum_never_ends_in_an_untyped_error(name: str) -> None:
    encoded = CODEC.encode(make_snapshot())
    data = encoded.sections[name]
    for place in range(min(len(data), 400)):
        for bit in range(8):
            bad = bytearray(data)
            bad[place] ^= 1 << bit
            try:
                CODEC.decode(changed(encoded, **{name: bytes(bad)}))
            except KVCompressError:
                continue


@pytest.mark.parametrize(
    "scale", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7e", b"\x00\xbc", b"\x00\x80"], ids=["inf", "-inf", "nan", "-1", "-0"]
)
def test_scales_that_are_no_steps_are_refused(scale: bytes) -> None:
    encoded = CODEC.encode(make_snapshot(dtype="float16"))
    data = encoded.sections["scales"]
    assert data[0] == 2
    with pytest.raises(FormatError, match="negative or not finite"):
        CODEC.decode(changed(encoded, scales=data[:1] + scale + data[3:]))


def test_code_minus_128_is_refused() -> None:
    encoded = CODEC.encode(make_snapshot())
    with pytest.raises(FormatError, match="-128"):
        CODEC.decode(changed(encoded, codes=b"\x80" + encoded.sections["codes"][1:]))


BAD_SHAPES = [
    None,
    3,
    [],
    [[1, 2, 4, 4]],
    [[1, 2, 4, 4], [1, 2, 4, 7]],
    [[1, 2, 4, 4], [1, 2, 4]],
    [[1, 2, 4, 4], [1, 2, 4, 6.0]],
    [[1, 2, 4, 4], [True, 2, 4, 6]],
    [[0, 9, 9, 9], [1, 2, 4, 4], [1, 2, 4, 6]],
    [[1, 2, 4, 4], [-1, 2, 4, 6]],
    [[1, 2, 4, 4], [1, 2, 4, 65536]],
    [[65535, 65535, 65535, 65535]] * 1000,
    [[1, 2, 4, 4], [4096, 2, 4, 6]],
]


@pytest.mark.parametrize("shapes", BAD_SHAPES, ids=lambda shapes: str(shapes)[:40])
def test_shapes_that_lie_are_refused_before_anything_is_built(shapes: object) -> None:
    encoded = CODEC.encode(make_snapshot())
    assert encoded.settings["shapes"] == [[1, 2, 4, 4], [1, 2, 4, 6]]
    with pytest.raises(FormatError, match=r"shapes|positions"):
        CODEC.decode(replace(encoded, settings={"shapes": shapes}))


def test_raw_bytes_that_lie_are_refused() -> None:
    encoded = CODEC.encode(make_snapshot())
    with pytest.raises(FormatError, match="raw bytes"):
        CODEC.decode(replace(encoded, raw_bytes=encoded.raw_bytes + 2))
