"""Quantising baselines: real bytes, real packing, errors within the bound that each method promises."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcompress.errors import FormatError, InputError, KVCompressError, MismatchError
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.format.reader import Reader
from kvcompress.hf import capture
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint
from kvcompress_eval.baselines import bitpacking, cachegen, int8, kivi, persistence, raw16, turboquant, zstd
from kvcompress_eval.baselines.lloyd_max import lloyd_max, sphere_coordinate
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from tests.codec.conftest import random_sessions, tiny_model
from tests.fidelity.models import build, tokens
from tests.format.examples import make_origin, make_snapshot, require_identical

ROOMS = (raw16, zstd, int8, kivi, turboquant, cachegen)
HALF_ULP = 2.0**-11  # float16, relative


def fitted(*snapshots: KVSnapshot) -> dict[str, Baseline]:
    """Return every baseline, fitted to these caches where it is fitted at all."""
    calibration: Any = SimpleNamespace(snapshots=lambda: iter(snapshots))
    return {baseline.name: baseline for room in ROOMS for baseline in room.family(calibration)}


def filled(shapes: list[tuple[int, int, int]], count: int, fill: Any, dtype: str = "float32") -> KVSnapshot:
    """Return a snapshot whose tensors are `fill(shape)`."""
    layers = tuple(
        LayerKV(fill((heads, count, key_size)), fill((heads, count, value_size)), torch.arange(count))
        for heads, key_size, value_size in shapes
    )
    return KVSnapshot(layers, torch.arange(count), make_origin(len(shapes), dtype, count))


def gaussian(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def sliding() -> KVSnapshot:
    return capture(build("qwen2").float(), tokens(70))


SNAPSHOTS: dict[str, Callable[[], KVSnapshot]] = {
    "llama": lambda: capture(tiny_model(), random_sessions(1, 150, seed=9)[0]),
    "llama-bfloat16": lambda: capture(tiny_model().bfloat16(), random_sessions(1, 45, seed=8)[0]),
    "sliding": sliding,
    "bits-bfloat16": lambda: make_snapshot(tokens=21, dtype="bfloat16"),
    "bits-float16": lambda: make_snapshot(tokens=21, dtype="float16"),
    "bits-float32": lambda: make_snapshot(tokens=21, dtype="float32"),
    "empty": lambda: make_snapshot(tokens=0, dropped=(0, 0)),
    "one token": lambda: make_snapshot(tokens=1, dropped=(0, 1)),
    "zeros": lambda: filled([(2, 8, 8)], 40, torch.zeros),
    "constant": lambda: filled([(2, 8, 8)], 40, lambda shape: torch.full(shape, 0.3)),
    "largest": lambda: filled([(1, 4, 4)], 40, lambda shape: gaussian(shape).sign() * torch.finfo(torch.float32).max),
    "largest-float16": lambda: filled([(1, 4, 4)], 40, lambda shape: gaussian(shape).sign().half() * 65504, "float16"),
    "tiny": lambda: filled([(1, 4, 4)], 40, lambda shape: gaussian(shape) * 1e-30),
    "odd heads": lambda: filled([(3, 40, 80), (1, 1, 33), (2, 5, 2)], 170, gaussian),
}


@pytest.fixture(scope="module")
def snapshot() -> KVSnapshot:
    torch.set_num_threads(1)
    return SNAPSHOTS["llama"]()


@pytest.fixture(scope="module")
def baselines() -> dict[str, Baseline]:
    model = tiny_model()
    calibration = Calibration(model, None, random_sessions(6, 150, seed=3))
    return {baseline.name: baseline for room in ROOMS for baseline in room.family(calibration)}


def arrays(snapshot: KVSnapshot) -> list[np.ndarray]:
    return [part.double().numpy() for layer in snapshot.layers for part in (layer.keys, layer.values)]


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_every_baseline_survives_bytes_and_is_deterministic(name: str) -> None:
    snapshot = SNAPSHOTS[name]()
    again = fitted(snapshot)
    for baseline in fitted(snapshot).values():
        data = to_bytes(baseline.encode(snapshot))
        assert data == to_bytes(again[baseline.name].encode(snapshot)), baseline.name
        decoded = baseline.decode(from_bytes(data))
        require_identical(decoded, again[baseline.name].decode(baseline.encode(snapshot)))
        assert torch.equal(decoded.token_ids, snapshot.token_ids)
        assert decoded.origin.to_json() == json.loads(json.dumps(snapshot.origin.to_json())) | {
            part: getattr(snapshot.origin, part) for part in ("layer_kinds", "rope_layers")
        }
        for found, exact in zip(decoded.layers, snapshot.layers, strict=True):
            assert torch.equal(found.positions, exact.positions)
            assert (found.keys.shape, found.values.shape) == (exact.keys.shape, exact.values.shape)


@pytest.mark.parametrize("name", ["llama-bfloat16", "bits-bfloat16", "bits-float16", "empty", "one token"])
@pytest.mark.parametrize("point", ["raw16", "zstd-3", "zstd-19"])
def test_sixteen_bit_caches_come_back_bit_by_bit(name: str, point: str) -> None:
    snapshot = SNAPSHOTS[name]()
    baseline = fitted(snapshot)[point]
    require_identical(baseline.decode(from_bytes(to_bytes(baseline.encode(snapshot)))), snapshot)


@pytest.mark.parametrize("point", ["raw16", "zstd-3"])
def test_float32_is_rounded_to_float16_or_beyond_its_range_to_bfloat16(point: str) -> None:
    for name, dtype in (("llama", torch.float16), ("tiny", torch.float16), ("bits-float32", torch.bfloat16)):
        snapshot = SNAPSHOTS[name]()
        baseline = fitted(snapshot)[point]
        decoded = baseline.decode(baseline.encode(snapshot))
        for found, exact in zip(decoded.layers, snapshot.layers, strict=True):
            for part, wanted in ((found.keys, exact.keys), (found.values, exact.values)):
                assert torch.equal(part, wanted.to(dtype).float())


def test_raw16_stores_two_bytes_a_value(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    assert len(baselines["raw16"].encode(snapshot).sections["cache"]) == snapshot.raw_bytes


@pytest.mark.parametrize("name", ["llama", "sliding", "odd heads", "constant", "zeros", "tiny"])
def test_kivi_errors_stay_within_half_a_step_of_every_group(name: str) -> None:
    snapshot = SNAPSHOTS[name]()
    for baseline in kivi.family(Calibration(None, None, [])):
        assert isinstance(baseline, kivi.Kivi)
        decoded = arrays(baseline.decode(baseline.encode(snapshot)))
        for index, (exact, found) in enumerate(zip(arrays(snapshot), decoded, strict=True)):
            require_kivi_bound(exact, found, index % 2 == 0, baseline.bits, baseline.residual_tokens)


def require_kivi_bound(exact: np.ndarray, found: np.ndarray, keys: bool, bits: int, residual: int) -> None:
    heads, count, _ = exact.shape
    split = count // residual * residual if keys else max(0, count - residual)
    assert np.array_equal(found[:, split:], exact[:, split:].astype(np.float16).astype(np.float64))
    for head in range(heads):
        matrix, guess = (part[head, :split].T if keys else part[head, :split] for part in (exact, found))
        for row, other in zip(matrix, guess, strict=True):
            for start in range(0, len(row), 32):
                group, errors = row[start : start + 32], np.abs(other - row)[start : start + 32]
                spread = group.max() - group.min() + abs(group.min()) * 2 * HALF_ULP + 2**-24
                step = spread / (2**bits - 1) * (1 + 2 * HALF_ULP) + 2**-24
                assert errors.max() <= step / 2 + 1e-6 * np.abs(group).max()


def test_kivi_uses_its_bits(snapshot: KVSnapshot) -> None:
    """A group of the first layer's keys takes both ends of its range and no more values than it has codes."""
    for baseline in kivi.family(Calibration(None, None, [])):
        assert isinstance(baseline, kivi.Kivi)
        keys = baseline.decode(baseline.encode(snapshot)).layers[0].keys[:, :32]
        for head, channel in ((0, 0), (1, 5)):
            levels = sorted(set(keys[head, :, channel].tolist()))
            assert 2 ** (baseline.bits - 1) < len(levels) <= 2**baseline.bits
            exact = snapshot.layers[0].keys[head, :32, channel]
            assert levels[0] == pytest.approx(float(exact.min()), rel=2e-3)
            assert levels[-1] == pytest.approx(float(exact.max()), rel=2e-3)


@pytest.mark.parametrize("name", ["llama", "odd heads", "constant", "tiny"])
def test_int8_errors_stay_within_half_a_step(name: str) -> None:
    snapshot = SNAPSHOTS[name]()
    for baseline in int8.family(Calibration(None, None, [])):
        decoded = arrays(baseline.decode(baseline.encode(snapshot)))
        for index, (exact, found) in enumerate(zip(arrays(snapshot), decoded, strict=True)):
            if baseline.name == "q8_0":
                cuts = range(0, exact.shape[2], 32)
                largest = np.concatenate(
                    [np.abs(exact[..., c : c + 32]).max(-1, keepdims=True).repeat(32, -1) for c in cuts], axis=-1
                )[..., : exact.shape[2]]
            else:
                largest = np.abs(exact).max(1 if index % 2 == 0 else 2, keepdims=True)
            bound = (largest / 127 * (1 + 2 * HALF_ULP) + 2**-24) / 2
            assert (np.abs(found - exact) <= bound + 1e-7 * largest).all()
            assert np.abs(found - exact).max() > 0 or name in ("constant", "tiny")


def packed(count: int, bits: int) -> int:
    return math.ceil(count * bits / 8)


def test_sections_are_as_long_as_their_formulas_say() -> None:
    snapshot = SNAPSHOTS["odd heads"]()
    shapes = [part.shape for part in arrays(snapshot)]
    for baseline in fitted(snapshot).values():
        sizes = {name: len(data) for name, data in baseline.encode(snapshot).sections.items()}
        if isinstance(baseline, turboquant.TurboQuant):
            assert sizes["codes"] == sum(packed(math.prod(shape), baseline.bits) for shape in shapes)
            assert sizes["scales"] == sum(1 + 2 * heads * count for heads, count, _ in shapes)
        elif baseline.name == "int8":
            assert sizes["codes"] == sum(math.prod(shape) for shape in shapes)
            tallies = [h * (t if i % 2 else d) for i, (h, t, d) in enumerate(shapes)]
            assert sizes["scales"] == sum(1 + 2 * tally for tally in tallies)
        elif baseline.name == "q8_0":
            assert sizes["scales"] == sum(1 + 2 * h * t * math.ceil(d / 32) for h, t, d in shapes)
        elif isinstance(baseline, kivi.Kivi):
            old, kept = baseline.residual_tokens, [0, 0, 0]
            for index, (heads, count, size) in enumerate(shapes):
                split = count - (count % old if index % 2 == 0 else min(count, old))
                groups = size * math.ceil(split / 32) if index % 2 == 0 else split * math.ceil(size / 32)
                kept[0] += packed(heads * split * size, baseline.bits)
                kept[1] += 1 + 2 * 2 * heads * groups
                kept[2] += 2 * heads * (count - split) * size
            assert [sizes["codes"], sizes["scales"], sizes["residual"]] == kept


def test_scales_beyond_float16_are_kept_in_float32() -> None:
    """Magnitudes from 2 to 3e38 in one cache: every value comes back to within its group's step, none is infinite."""
    snapshot = SNAPSHOTS["bits-bfloat16"]()
    assert max(np.abs(part).max() for part in arrays(snapshot)) > 1e30
    for point in ("int8", "q8_0", "kivi-4bit-r32", "turboquant-4bit", "cachegen-x4", "cachegen-lmcache-x4"):
        baseline = fitted(snapshot)[point]
        for exact, found in zip(arrays(snapshot), arrays(baseline.decode(baseline.encode(snapshot))), strict=True):
            assert np.abs(found - exact).max() <= 0.5 * np.abs(exact).max()


@pytest.mark.parametrize("bits", turboquant.BITS)
def test_turboquant_has_the_distortion_that_its_quantiser_promises(bits: int) -> None:
    """Vectors lose what random directions lose whose coordinates go to the nearest level, without any rotation."""
    snapshot = filled([(2, 32, 8)], 800, gaussian)
    baseline = turboquant.TurboQuant(bits)
    for exact, found in zip(arrays(snapshot), arrays(baseline.decode(baseline.encode(snapshot))), strict=True):
        size = exact.shape[-1]
        levels, distortion = lloyd_max(sphere_coordinate(size), 2**bits)
        random = np.random.default_rng(1).standard_normal((20_000, size))
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        nearest = levels[np.abs(random[..., None] - levels).argmin(-1)]
        cosines = (random * nearest).sum(1) / np.linalg.norm(nearest, axis=1)
        lost = ((exact - found) ** 2).sum(-1) / (exact**2).sum(-1)
        assert lost.mean() == pytest.approx(2 - 2 * cosines.mean(), rel=0.03)
        assert lost.mean() < 1.25 * size * distortion  # keeping the length costs little, at one bit most


@pytest.mark.parametrize("name", ["llama", "odd heads", "tiny", "largest-float16"])
def test_turboquant_keeps_lengths(name: str) -> None:
    snapshot = SNAPSHOTS[name]()
    for baseline in turboquant.family(Calibration(None, None, [])):
        for exact, found in zip(arrays(snapshot), arrays(baseline.decode(baseline.encode(snapshot))), strict=True):
            if name == "largest-float16":  # a coordinate beyond the cache's dtype is cut there
                assert np.abs(found).max() <= 65504
                continue
            wanted, kept = np.linalg.norm(exact, axis=-1), np.linalg.norm(found, axis=-1)
            assert np.abs(kept - wanted).max() <= 1.01 * HALF_ULP * wanted.max() + 2**-24


def test_rotations_are_orthogonal_and_differ_from_head_to_head() -> None:
    turned = turboquant.rotations(1, 3, 16)
    assert turned @ turned.swapaxes(1, 2) == pytest.approx(np.broadcast_to(np.eye(16), (3, 16, 16)), abs=1e-12)
    assert np.abs(turned[0] - turned[1]).max() > 0.1
    assert np.abs(turned[0] - turboquant.rotations(2, 3, 16)[0]).max() > 0.1


@pytest.mark.parametrize("quality", cachegen.QUALITIES)
def test_cachegen_errors_stay_within_half_a_bin(
    baselines: dict[str, Baseline], snapshot: KVSnapshot, quality: float
) -> None:
    for curve, every in (("cachegen", 10), ("cachegen-lmcache", 10**9)):
        baseline = baselines[f"{curve}-x{quality:g}"]
        decoded = arrays(baseline.decode(baseline.encode(snapshot)))
        for index, (exact, found) in enumerate(zip(arrays(snapshot), decoded, strict=True)):
            fine = index // 2 < 1  # the first of three layers, for keys and for values
            most = int(quality * (32 if fine else 16)) // 2 - 1
            for token in range(exact.shape[1]):
                anchored = curve == "cachegen"
                wanted = exact[:, token] - (found[:, token // every * every] if anchored and token % every else 0)
                top = 127 if anchored and token % every == 0 else most
                step = np.abs(wanted).max() / top * (1 + 2 * HALF_ULP) + 2**-24
                assert np.abs(found - exact)[:, token].max() <= step / 2 + 1e-6


def test_cachegen_bins_are_those_of_its_authors_at_32_layers() -> None:
    bins = cachegen.tensor_bins(32, 1)
    assert bins[::2] == [32] * 10 + [16] * 22
    assert bins[1::2] == [32] * 2 + [16] * 30


def test_cachegen_is_as_short_as_its_tables_allow(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    for baseline in (found for found in baselines.values() if isinstance(found, cachegen.CacheGen)):
        bits = 0.0
        for index, exact in enumerate(arrays(snapshot)):
            rows = np.concatenate(list(exact), axis=1)  # [T, H * D]
            part = cachegen.quantize(rows, baseline.most[index], baseline.group_tokens)
            for symbols, table in zip((part.anchors, part.others), baseline.tables[index], strict=True):
                for channel in range(symbols.shape[1] if symbols.size else 0):
                    counts = table[channel][symbols[:, channel] + table.shape[1] // 2]
                    bits -= np.log2(counts / 65536).sum()
        size_bits = 8 * len(baseline.encode(snapshot).sections["symbols"])
        assert bits - 32 <= size_bits <= 1.001 * bits + 64
        uniform = sum(
            part.size * math.log2(2 * most + 1) for part, most in zip(arrays(snapshot), baseline.most, strict=True)
        )
        assert baseline.group_tokens or size_bits < 0.95 * uniform


@given(st.lists(st.lists(st.integers(0, 5000), min_size=5, max_size=5), min_size=1, max_size=4))
@example([[0, 0, 247, 377, 376], [0, 0, 0, 0, 5000]])
def test_integer_tables_sum_to_a_power_of_two_and_exclude_nothing(rows: list[list[int]]) -> None:
    table = cachegen.integer_tables(np.array(rows))
    assert (table.astype(int).sum(1) == 65536).all()
    assert table.min() >= 1
    for row, counts in zip(table, rows, strict=True):
        # All channels together weigh as POOLED_COUNTS tokens, so only as many can stand between the two largest.
        rounding = 1 + sum(counts) / cachegen.TABLE_TOTAL
        assert counts[row.argmax()] >= max(counts) - cachegen.POOLED_COUNTS - rounding


def test_cachegen_refuses_other_models_tables_and_shapes(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    baseline, other = baselines["cachegen-x1"], fitted(snapshot)["cachegen-x1"]
    assert baseline.fingerprint != other.fingerprint
    with pytest.raises(MismatchError):
        other.decode(baseline.encode(snapshot))
    with pytest.raises(MismatchError):
        baseline.encode(make_snapshot(dtype="float32"))
    fewer = KVSnapshot(
        tuple(LayerKV(layer.keys[:1], layer.values[:1], layer.positions) for layer in snapshot.layers),
        snapshot.token_ids,
        snapshot.origin,
    )
    with pytest.raises(InputError):
        baseline.encode(fewer)
    with pytest.raises(InputError):
        cachegen.family(Calibration(None, None, []))


def test_tables_are_counted_and_only_tables(baselines: dict[str, Baseline]) -> None:
    for baseline in baselines.values():
        channels = 2 * 3 * 2 * 16  # tensors a layer, layers, heads, head size
        if isinstance(baseline, cachegen.CacheGen):
            symbols = sum((255 if baseline.group_tokens else 0) + 2 * most + 1 for most in baseline.most)
            assert baseline.codec_bytes == 2 * symbols * channels // len(baseline.most)
            assert len(baseline.fingerprint) == 64
        else:
            assert (baseline.codec_bytes, baseline.fingerprint) == (0, "")


def test_finer_settings_cost_more_and_lose_less(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    for baseline in baselines.values():
        encoded = baseline.encode(snapshot)
        decoded = arrays(baseline.decode(encoded))
        error = sum(float(((a - b) ** 2).sum()) for a, b in zip(arrays(snapshot), decoded, strict=True))
        curves.setdefault(baseline.family, []).append((len(to_bytes(encoded)), error))
    assert set(curves) >= {"kivi", "kivi-r32", "cachegen", "cachegen-lmcache", "turboquant"}
    for name in ("kivi", "kivi-r32", "cachegen", "cachegen-lmcache", "turboquant"):
        errors = [error for _, error in sorted(curves[name])]
        assert errors == sorted(errors, reverse=True), name
        assert len(set(errors)) == len(errors) > 1


def changed(encoded: Encoded, **sections: bytes) -> Encoded:
    return dataclasses.replace(encoded, sections={**encoded.sections, **sections})


def test_damaged_files_end_in_a_typed_error(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    for baseline in baselines.values():
        encoded = baseline.encode(snapshot)
        for name in set(encoded.sections) - {"tokens", "origin", "positions"}:
            data = encoded.sections[name]
            # An entropy coder reads any whole words, none included, as some message: that is for checksums to find.
            hopeless = b"" if name == "symbols" else data
            for bad in (data[:-1], data + b"\0", b"", data[: len(data) // 2]):
                if bad not in (data, hopeless):
                    with pytest.raises(FormatError):
                        baseline.decode(changed(encoded, **{name: bad}))
            rest = {key: value for key, value in encoded.sections.items() if key != name}
            with pytest.raises(FormatError):
                baseline.decode(dataclasses.replace(encoded, sections=rest))
        for shapes in ([[3, 2, 16, 17]], [[2, 2, 16, 16]], "3", [[3, 2, 16]], [[3, -2, -16, 16]], None):
            with pytest.raises(FormatError):
                baseline.decode(dataclasses.replace(encoded, settings={**encoded.settings, "shapes": shapes}))


def test_files_of_other_settings_are_refused(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    for baseline in baselines.values():
        encoded = baseline.encode(snapshot)
        for other in baselines.values():
            if other is not baseline:
                with pytest.raises(MismatchError):
                    other.decode(encoded)


def test_a_stored_dtype_that_cannot_be_is_refused(snapshot: KVSnapshot) -> None:
    baseline = raw16.Raw16()
    encoded = baseline.encode(snapshot)
    for stored in ("float64", None, 3):
        with pytest.raises(FormatError):
            baseline.decode(dataclasses.replace(encoded, settings={**encoded.settings, "stored": stored}))


def test_names_are_unique_and_printable(baselines: dict[str, Baseline]) -> None:
    count = sum(len(room.family(Calibration(None, None, []))) for room in ROOMS if room is not cachegen)
    assert len(baselines) == count + 2 * len(cachegen.QUALITIES)
    assert all(name == baseline.name and name.isprintable() and baseline.family for name, baseline in baselines.items())


@given(st.integers(1, 8), st.data())
@settings(max_examples=60)
def test_packing_is_exact_and_leaves_no_gap(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))
    packed_codes = bitpacking.pack_bits(np.array(codes, dtype=np.uint8), bits)
    number = sum(code << (place * bits) for place, code in enumerate(codes))
    assert packed_codes == number.to_bytes(packed(len(codes), bits), "little")
    assert bitpacking.unpack_bits(packed_codes, bits, len(codes)).tolist() == codes


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError):
        bitpacking.pack_bits(np.array([4], dtype=np.uint8), 2)
    for bits in (0, 9):
        with pytest.raises(InputError):
            bitpacking.pack_bits(np.zeros(1, dtype=np.uint8), bits)
    for data in (b"", b"\0\0", b"\x80"):
        with pytest.raises(FormatError):
            bitpacking.unpack_bits(data, 3, 2)


@given(st.floats(-65504, 65504), st.sampled_from([np.float16, np.float32]))
def test_outward_rounding_takes_the_next_number_and_no_further(number: float, dtype: type) -> None:
    array = np.array([number])
    down, up = (float(rounded(array, dtype)[0]) for rounded in (bitpacking.rounded_down, bitpacking.rounded_up))
    assert down <= number <= up
    if down < up:
        assert up == float(np.nextafter(dtype(down), dtype(np.inf)))
    else:
        assert down == number


def test_scale_blocks_say_how_wide_they_are() -> None:
    for largest, width in ((65504.0, 2), (65505.0, 4), (1e300, 4)):
        numbers = np.array([1.0, largest])
        block = bitpacking.pack_scales(bitpacking.nearest(numbers, bitpacking.scale_type(numbers)))
        assert (block[0], len(block)) == (width, 1 + 2 * width)
        found = bitpacking.read_scales(Reader(block, "scales"), (2,))
        assert found == pytest.approx(np.minimum(numbers, np.finfo(np.float32).max))
    for bad in (b"\3\0\0\0", b"\2\0", b"\2\x00\x7c", b""):
        with pytest.raises(FormatError):
            bitpacking.read_scales(Reader(bad, "scales"), (1,))


def test_persistence_sizes_are_those_of_the_numbers_and_a_little() -> None:
    for name, pickled_bytes, saved_bytes in (("llama", 4, 4), ("llama-bfloat16", 4, 2), ("bits-float16", 2, 2)):
        snapshot = SNAPSHOTS[name]()
        sizes = persistence.original_sizes(snapshot)
        assert 0 <= sizes["pickle"] - pickled_bytes * snapshot.values_count < 2000
        assert 0 <= sizes["torch.save"] - saved_bytes * snapshot.values_count < 8000
        assert sizes["gzip(pickle)"] < sizes["pickle"]
    names = set(vars(persistence))
    assert not names & {"pickle", "load", "loads", "Unpickler", "gzip"}


def test_views_are_not_counted_with_what_lies_behind_them(snapshot: KVSnapshot) -> None:
    """The first ten tokens of a long cache are as large as a cache of ten tokens."""
    cut = tuple(LayerKV(la.keys[:, :10], la.values[:, :10], la.positions[:10]) for la in snapshot.layers)
    sizes = persistence.original_sizes(KVSnapshot(cut, snapshot.token_ids, snapshot.origin))
    assert sizes["torch.save"] - 4 * 10 * snapshot.values_count // snapshot.tokens < 8000


def test_other_models_are_named_in_the_error(baselines: dict[str, Baseline], snapshot: KVSnapshot) -> None:
    foreign = dataclasses.replace(snapshot.origin, fingerprint=ModelFingerprint("a" * 64, "b" * 64, "c" * 64))
    with pytest.raises(KVCompressError, match="config"):
        baselines["cachegen-lmcache-x1"].encode(KVSnapshot(snapshot.layers, snapshot.token_ids, foreign))
