"""Laws of the lossless codec and of the sections that all codecs share."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.codec.lossless import LosslessCodec
from kvcompress.errors import FormatError, InputError, KVCompressError, MismatchError
from kvcompress.format.container import Encoded, from_bytes, load, pack_origin, pack_positions, save, to_bytes
from kvcompress.format.session import read_session, session_sections
from kvcompress.format.token_ids import unpack_tokens
from kvcompress.format.zstd_frame import zstd_pack, zstd_unpack
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.format.examples import DTYPES, make_origin, make_snapshot, patterns, require_identical

CODEC = LosslessCodec()
GOLDEN = Path(__file__).parent / "golden" / "lossless.kvz"
GOLDEN_1 = GOLDEN.with_name("lossless.v1.kvz")


def through_bytes(snapshot: KVSnapshot) -> KVSnapshot:
    return CODEC.decode(from_bytes(to_bytes(CODEC.encode(snapshot))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 300])
def test_decode_gives_the_identical_bits(tokens: int, dtype: str) -> None:
    snapshot = make_snapshot(tokens, dtype)
    require_identical(through_bytes(snapshot), snapshot)


@st.composite
def snapshots(draw: st.DrawFn) -> KVSnapshot:
    dtype, tokens = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 12))
    layers = []
    for _ in range(draw(st.integers(0, 3))):
        heads, key_size, value_size = (draw(st.integers(low, 4)) for low in (1, 0, 0))
        kept = sorted(draw(st.sets(st.integers(0, tokens - 1)))) if tokens else []
        keys, values = (
            patterns((heads, len(kept), size), dtype, draw(st.integers(0, 2**31))) for size in (key_size, value_size)
        )
        layers.append(LayerKV(keys, values, torch.tensor(kept, dtype=torch.int64)))
    ids = draw(
        st.lists(st.integers(0, 2 ** draw(st.sampled_from([3, 8, 12, 17, 63])) - 1), min_size=tokens, max_size=tokens)
    )
    return KVSnapshot(tuple(layers), torch.tensor(ids, dtype=torch.int64), make_origin(len(layers), dtype, tokens))


@settings(max_examples=100, deadline=None)
@given(snapshots())
def test_any_snapshot_survives(snapshot: KVSnapshot) -> None:
    require_identical(through_bytes(snapshot), snapshot)


def test_negative_zero_and_subnormals_survive() -> None:
    for dtype, smallest in (("float32", 2.0**-149), ("bfloat16", 2.0**-133), ("float16", 2.0**-24)):
        keys = torch.tensor([[[0.0, -0.0, smallest, -smallest]]], dtype=getattr(torch, dtype))
        assert keys[0, 0, 2] != 0
        layer = LayerKV(keys, -keys, torch.arange(1))
        snapshot = KVSnapshot((layer,), torch.tensor([7]), make_origin(1, dtype, 1))
        found = through_bytes(snapshot).layers[0]
        assert torch.signbit(found.keys).tolist() == [[[False, True, False, True]]]
        require_identical(through_bytes(snapshot), snapshot)


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_1], ids=["version 2", "version 1"])
def test_golden_file_decodes_to_the_snapshot_it_was_made_of(golden: Path) -> None:
    encoded = load(golden)
    assert list(encoded.sections) == ["tokens", "origin", "positions", "cache"]
    require_identical(CODEC.decode(encoded), make_snapshot())
    assert from_bytes(to_bytes(encoded)) == encoded


def test_golden_file_of_version_1_with_a_codec_opens() -> None:
    encoded = load(GOLDEN_1.with_name("tinyvae.v1.kvz"))
    assert list(encoded.sections) == ["tokens", "origin", "positions", "latents.0"]
    token_ids, origin, positions = read_session(encoded)
    assert len(token_ids) == encoded.tokens == origin.next_position
    assert all(torch.equal(place, torch.arange(encoded.tokens)) for place in positions)


def test_positions_are_stored_only_where_a_token_was_dropped() -> None:
    whole, pruned = make_snapshot(dropped=(0, 0)), make_snapshot(dropped=(0, 1))
    assert "positions" not in CODEC.encode(whole).sections
    assert "positions" in CODEC.encode(pruned).sections
    require_identical(through_bytes(whole), whole)
    encoded = CODEC.encode(whole)
    stated = {**encoded.sections, "positions": pack_positions([list(range(5))] * 2)}
    require_identical(CODEC.decode(replace(encoded, sections=stated)), whole)


def test_encode_is_deterministic_and_blind_to_strides() -> None:
    snapshot = make_snapshot(50)
    layers = tuple(
        LayerKV(layer.keys.transpose(1, 2).contiguous().transpose(1, 2), layer.values, layer.positions)
        for layer in snapshot.layers
    )
    turned = KVSnapshot(layers, snapshot.token_ids, snapshot.origin)
    assert to_bytes(CODEC.encode(turned)) == to_bytes(CODEC.encode(snapshot)) == to_bytes(CODEC.encode(snapshot))


def test_encoded_names_model_and_size() -> None:
    snapshot = make_snapshot()
    encoded = CODEC.encode(snapshot)
    assert encoded.model == {"config": "c" * 64, "weights": "0123456789abcdef" * 4, "rope": "e" * 64, "tokenizer": None}
    assert (encoded.codec, encoded.codec_fingerprint, encoded.model_name) == ("lossless", "", "tiny")
    assert (encoded.tokens, encoded.raw_bytes) == (5, snapshot.raw_bytes)


def test_constant_cache_is_small_and_noise_costs_little() -> None:
    layer = LayerKV(torch.ones(4, 1000, 32), torch.ones(4, 1000, 32), torch.arange(1000))
    constant = KVSnapshot((layer,), torch.zeros(1000, dtype=torch.int64), make_origin(1, "float32", 1000))
    assert len(to_bytes(CODEC.encode(constant))) < 1500
    require_identical(through_bytes(constant), constant)
    bits = torch.randint(0, 0x7F80, (4, 1000, 32), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    noise = LayerKV(bits.view(torch.bfloat16), bits.view(torch.bfloat16), torch.arange(1000))
    noisy = KVSnapshot((noise,), torch.zeros(1000, dtype=torch.int64), make_origin(1, "bfloat16", 1000))
    assert len(to_bytes(CODEC.encode(noisy))) < noisy.raw_bytes + 1500


def test_long_ids_of_few_values_take_the_fewest_bytes() -> None:
    for largest, width in ((0, 1), (255, 1), (256, 2), (65535, 2), (128_255, 3), (2**32, 5), (2**63 - 1, 8)):
        ids = torch.tensor([largest, 0])
        sections = session_sections(KVSnapshot((), ids, make_origin(0, "float32", 2)))
        assert sections["tokens"][0] % 16 == width
        assert torch.equal(unpack_tokens(sections["tokens"]), ids)


def test_position_without_a_token_is_refused_at_encoding() -> None:
    layer = LayerKV(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.tensor([5]))
    snapshot = KVSnapshot((layer,), torch.tensor([1, 2]), make_origin(1, "float32", 6))
    with pytest.raises(InputError, match="layer 0: a position lies beyond the 2 tokens"):
        CODEC.encode(snapshot)


def test_file_of_another_codec_is_refused() -> None:
    with pytest.raises(MismatchError, match="expected tinyvae, found lossless"):
        CODEC.decode(replace(CODEC.encode(make_snapshot()), codec="tinyvae"))


def changed(**sections: bytes | None) -> Encoded:
    """Return the golden content with other sections; None leaves one out."""
    encoded = CODEC.encode(make_snapshot())
    merged = {**encoded.sections, **sections}
    return replace(encoded, sections={name: data for name, data in merged.items() if data is not None})


@pytest.mark.parametrize("name", ["tokens", "origin", "positions", "cache"])
def test_section_cut_or_missing_or_too_long_is_refused(name: str) -> None:
    data = CODEC.encode(make_snapshot()).sections[name]
    # Where positions are missing every layer holds every token, which the cache of this one contradicts.
    what = "raw bytes" if name == "positions" else f"{name}' is missing"
    with pytest.raises(FormatError, match=what):
        CODEC.decode(changed(**{name: None}))
    for size in range(len(data)):
        with pytest.raises(KVCompressError):
            CODEC.decode(changed(**{name: data[:size]}))
    with pytest.raises(FormatError):
        CODEC.decode(changed(**{name: data + b"\0"}))


@pytest.mark.parametrize("name", ["tokens", "origin", "positions", "cache"])
def test_flipped_bit_behind_a_valid_checksum_never_ends_in_an_untyped_error(name: str) -> None:
    data = CODEC.encode(make_snapshot()).sections[name]
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << offset % 8
        with contextlib.suppress(KVCompressError):
            CODEC.decode(changed(**{name: bytes(flipped)}))


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_1], ids=["version 2", "version 1"])
def test_golden_file_is_refused_when_cut_anywhere_or_flipped_anywhere(golden: Path) -> None:
    data = golden.read_bytes()
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << offset % 8
        with pytest.raises(FormatError):
            from_bytes(bytes(flipped))
    for size in range(len(data)):
        with pytest.raises(FormatError):
            from_bytes(data[:size])


def test_unknown_section_is_refused() -> None:
    with pytest.raises(FormatError, match="'extra' is unknown"):
        CODEC.decode(changed(extra=b"unread"))


def _origin(**changes: Any) -> bytes:
    return pack_origin(make_snapshot().origin.to_json() | changes)


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "tokens fewer than the header": ({"tokens": 4}, "header counts 4 tokens|more than 4 tokens|impossible size"),
    "raw bytes": ({"raw_bytes": 10}, "header counts 10 raw bytes"),
    "model": ({"model": {"config": "d" * 32}}, "name different models"),
    "token width 0": ({"tokens_section": b"\0"}, "width from 1 to 8"),
    "token width 9": ({"tokens_section": b"\x09" + zstd_pack(bytes(45), 3)}, "width from 1 to 8"),
    "token width 2 of 5 bytes": ({"tokens_section": b"\2" + zstd_pack(bytes(5), 3)}, "whole 2-byte integers"),
    "token beyond 63 bits": ({"tokens_section": b"\x08" + zstd_pack(b"\xff" * 40, 3)}, "beyond 63 bits"),
    "positions of one layer": ({"positions": pack_positions([[0]])}, "1 layers do not fit an origin of 2"),
    "positions beyond": ({"positions": pack_positions([[0], [5]])}, "beyond the 5 tokens"),
    "positions too many": ({"positions": pack_positions([[0], list(range(9))])}, "more positions than the 5"),
    "positions fewer": ({"positions": pack_positions([[0], [1]])}, "raw bytes"),
    "origin field": ({"origin": pack_origin({})}, "incomplete"),
    "origin dtype": ({"origin": _origin(dtype="int8")}, "unknown cache dtype"),
    "origin of other width": ({"origin": _origin(dtype="float32")}, "cache' "),
    "origin hash a number": (
        {"origin": _origin(fingerprint={"config": 5, "weights": "", "rope": ""})},
        "name different models|incomplete",
    ),
    "origin next position": ({"origin": _origin(next_position=1)}, "beyond the next position"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_refused(lie: str) -> None:
    changes, what = dict(LIES[lie][0]), LIES[lie][1]
    header = {key: changes.pop(key) for key in ("tokens", "raw_bytes", "model") if key in changes}
    if "tokens_section" in changes:
        changes["tokens"] = changes.pop("tokens_section")
    with pytest.raises(KVCompressError, match=what):
        CODEC.decode(replace(changed(**changes), **header))


def test_huge_claims_allocate_nothing() -> None:
    cache = CODEC.encode(make_snapshot()).sections["cache"]
    huge_shapes = struct.pack("<I", 2) + b"\xff" * 12
    frame = bytes.fromhex("28b52ffd") + b"\xe0" + struct.pack("<Q", 2**40) + b"\x01\x00\x00"
    huge_frame = cache[:16] + struct.pack("<Q", len(frame)) + frame
    huge_length = cache[:16] + struct.pack("<Q", 2**62) + cache[24:]
    values_count = 2 * 65535 * 65535 * (5 + 3)
    claims = [
        changed(cache=huge_shapes),
        replace(changed(cache=huge_shapes), raw_bytes=2 * values_count),
        changed(cache=huge_frame),
        changed(cache=huge_length),
        changed(tokens=b"\x01" + frame),
    ]
    for encoded in claims:
        tracemalloc.start()
        with pytest.raises(FormatError):
            CODEC.decode(encoded)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 1 << 20


def test_frame_must_state_its_size_and_end_with_its_data() -> None:
    unstated = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 50)
    skippable = bytes.fromhex("502a4d18") + struct.pack("<I", 4) + b"abcd"
    good = zstd_pack(b"abc" * 50, 3)
    assert zstd_unpack(good, 150, "x") == b"abc" * 50
    for frame, most in ((unstated, 150), (skippable, 150), (good, 149), (good + b"\0", 150), (good + good, 300)):
        with pytest.raises(FormatError):
            zstd_unpack(frame, most, "x")


def test_two_saves_are_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, CODEC.encode(make_snapshot(40, "float16")))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
