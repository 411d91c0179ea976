"""KVTC as published and in its ideal form: the allocation is the best one, and what is written is what is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.container import from_bytes, to_bytes
from kvcompress.hf import capture
from kvcompress.hf.channels import to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines import kvtc, kvtc_ideal
from kvcompress_eval.baselines.kvtc_allocation import (
    Block,
    block_bytes,
    block_unit,
    cost_bits,
    dequantize_block,
    measured_distortions,
    pack_block,
    quantize_block,
    solve,
    split_budget,
    total_bits,
    unpack_block,
)
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from tests.codec.conftest import random_sessions, tiny_model
from tests.fidelity.models import build, tokens
from tinyvae.quantize import DEAD_ZONE, LOWEST_SCALE_LOG2

SESSION_TOKENS = 400
OVERHEAD_BITS = 6
Distortions = dict[tuple[int, int], np.ndarray]


@cache
def calibration(dtype: torch.dtype = torch.float32) -> Calibration:
    model: Any = tiny_model()
    return Calibration(model.to(dtype), None, random_sessions(16, 260))


@cache
def baselines() -> dict[str, Baseline]:
    return {baseline.name: baseline for module in (kvtc, kvtc_ideal) for baseline in module.family(calibration())}


def recorded(count: int = SESSION_TOKENS, seed: int = 9) -> KVSnapshot:
    return capture(calibration().model, random_sessions(1, count, seed)[0])


NAMES = ("kvtc-4x", "kvtc-16x", "kvtc-64x", "kvtc-ideal-4x", "kvtc-ideal-16x", "kvtc-ideal-64x")


def random_distortions(components: int, seed: int) -> Distortions:
    """Distortions of any kind, not only of Gaussian components: nothing but the sum over blocks may matter."""
    generator = np.random.default_rng(seed)
    return {
        (size, bits): generator.exponential(size * 4.0**-bits if seed % 2 else size, components - size + 1)
        for size in (1, 2, 3)
        for bits in (0, 2, 4)
        if size <= components
    }


def every_cut(distortions: Distortions, components: int, start: int = 0) -> Iterator[tuple[int, float]]:
    """Yield cost and distortion of every way to cut the components into blocks."""
    if start == components:
        yield 0, 0.0
    for (size, bits), missed in distortions.items():
        if start + size <= components:
            for cost, rest in every_cut(distortions, components, start + size):
                yield cost + cost_bits(size, bits, OVERHEAD_BITS), rest + missed[start]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("components", [1, 2, 4, 5])
def test_the_programme_finds_the_best_of_all_cuts(components: int, seed: int) -> None:
    distortions = random_distortions(components, seed)
    cuts = list(every_cut(distortions, components))
    allocation = solve(distortions, 50, OVERHEAD_BITS)
    for budget in (0, 7, 8, 13, 20, 31, 50):
        blocks = allocation.blocks(budget)
        least = min(missed for cost, missed in cuts if cost <= budget)
        assert sum(distortions[b.size, b.bits][b.start] for b in blocks) == pytest.approx(least)
        assert total_bits(blocks, OVERHEAD_BITS) <= budget
        assert [b.start for b in blocks] == [sum(b.size for b in blocks[:i]) for i in range(len(blocks))]
        assert sum(b.size for b in blocks) == components


@pytest.mark.parametrize("budget", [0, 9, 24, 60])
def test_one_budget_is_split_at_the_best_place(budget: int) -> None:
    first, second = random_distortions(4, 1), random_distortions(3, 3)
    chosen = split_budget(solve(first, 60, OVERHEAD_BITS), solve(second, 60, OVERHEAD_BITS), budget)
    missed = sum(d[b.size, b.bits][b.start] for d, part in zip((first, second), chosen, strict=True) for b in part)
    least = min(
        one + other
        for cost, one in every_cut(first, 4)
        for more, other in every_cut(second, 3)
        if cost + more <= budget
    )
    assert missed == pytest.approx(least)
    assert sum(total_bits(part, OVERHEAD_BITS) for part in chosen) <= budget


def test_measured_distortions_are_those_of_the_stored_blocks() -> None:
    latents = torch.randn(50, 20, generator=torch.Generator().manual_seed(3)) * torch.linspace(4, 0.1, 20)
    found = measured_distortions(latents)
    assert found[16, 0][3] == pytest.approx(float(latents[:, 3:19].square().mean(0).sum()), rel=1e-5)
    for size, bits, start in ((1, 2, 0), (16, 4, 2), (16, 8, 4)):
        part = latents[:, start : start + size]
        again = unpack_block(
            pack_block(latents, Block(start, size, bits), block_unit(part)),
            Block(0, size, bits),
            block_unit(part),
            len(part),
        )
        assert found[size, bits][start] == pytest.approx(float((again - part).square().sum(1).mean()), rel=1e-4)
    assert found[16, 8][0] < found[16, 4][0] < found[16, 2][0] < found[16, 0][0]


@pytest.mark.parametrize("size", [1, 16, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_block_survives_within_its_step_and_packs_to_its_size(bits: int, size: int) -> None:
    latents = 3.0 * torch.randn(33, size, generator=torch.Generator().manual_seed(bits)) + 0.5
    unit = block_unit(latents)
    decoded = dequantize_block(quantize_block(latents, bits, unit), bits, unit)
    low, high = latents.amin(1), latents.amax(1)
    # Half a step, the rounding of the shift (3 bits of mantissa) and that of the scale (an eighth of an octave).
    if bits == 8:
        bound = ((high - low) / 2 + (low + high).abs() / 32) / 16 + 0.01 * unit
    else:
        bound = (high - low) * (0.5 / (2**bits - 1) + 0.05) + low.abs() / 16 + 0.01 * unit
    assert bool(((decoded - latents).square().mean(1).sqrt() <= bound).all())
    packed = pack_block(latents, Block(0, size, bits), unit)
    assert len(packed) == block_bytes(Block(0, size, bits), 33) == 2 * 33 + math.ceil(33 * size * bits / 8)
    assert torch.equal(unpack_block(packed, Block(0, size, bits), unit, 33), decoded)


def test_all_components_unquantised_give_the_cache_back() -> None:
    transform, _ = kvtc.fit(calibration())
    snapshot = recorded()
    assert [axes.basis.shape[0] for axes in transform.axes] == [96, 96]
    layers = transform.synthesise(transform.analyse(snapshot), snapshot.layers[0].positions, snapshot.origin)
    for ours, theirs in zip(layers, snapshot.layers, strict=True):
        assert torch.allclose(ours.keys, theirs.keys, atol=1e-4 * float(theirs.keys.abs().max()))
        assert torch.allclose(ours.values, theirs.values, atol=1e-4 * float(theirs.values.abs().max()))


def test_the_axes_are_the_principal_ones_of_pre_rope_keys() -> None:
    transform, _ = kvtc.fit(Calibration(calibration().model, None, calibration().sessions[:3]), 4, 128)
    rows = []
    for snapshot in (capture(calibration().model, ids) for ids in calibration().sessions[:3]):
        rope = rope_of(snapshot.origin)
        parts = [rope.undo(i, kv.keys, kv.positions) for i, kv in enumerate(snapshot.layers)]
        rows.append(torch.cat([head for part in parts for head in part], 1)[4:-128])
    centred = torch.cat(rows).double() - torch.cat(rows).double().mean(0)
    leading = torch.linalg.svd(centred, full_matrices=False).Vh[:8]
    found = transform.axes[0].basis[:8].double()
    assert torch.allclose((found * leading).sum(1).abs(), torch.ones(8).double(), atol=5e-3)


def test_the_rank_exceeds_neither_channels_nor_rows() -> None:
    transform, latents = kvtc.fit(Calibration(calibration().model, None, random_sessions(2, 20)))
    assert all(axes.basis.shape[0] <= 39 for axes in transform.axes)
    assert [len(part) for part in latents] == [40, 40]


@pytest.mark.parametrize("name", NAMES)
def test_files_decode_to_what_was_coded_and_are_deterministic(name: str) -> None:
    baseline, snapshot = baselines()[name], recorded()
    data = to_bytes(baseline.encode(snapshot))
    assert to_bytes(baseline.encode(recorded())) == data
    decoded = baseline.decode(from_bytes(data))
    again = baseline.decode(baseline.encode(snapshot))
    assert torch.equal(decoded.token_ids, snapshot.token_ids)
    assert decoded.origin == snapshot.origin
    for ours, other, exact in zip(decoded.layers, again.layers, snapshot.layers, strict=True):
        assert torch.equal(ours.keys, other.keys)
        assert torch.equal(ours.values, other.values)
        assert torch.equal(ours.positions, exact.positions)


def squared_error(decoded: KVSnapshot, exact: KVSnapshot) -> float:
    layers = range(len(exact.layers))
    ours, theirs = (to_channels(one, layers, rope_of(exact.origin)) for one in (decoded, exact))
    return float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())


@pytest.mark.parametrize("prefix", ["kvtc-", "kvtc-ideal-"])
def test_more_bytes_are_closer(prefix: str) -> None:
    snapshot, sizes, errors = recorded(), [], []
    family = [baseline for name, baseline in baselines().items() if baseline.family == prefix[:-1]]
    assert len(family) >= 5
    for baseline in family:
        encoded = baseline.encode(snapshot)
        sizes.append(len(to_bytes(encoded)))
        errors.append(squared_error(baseline.decode(encoded), snapshot))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 0.02
    assert errors[-1] < 1.0


def test_published_blocks_keep_their_target_before_deflate() -> None:
    for name, baseline in baselines().items():
        if isinstance(baseline, kvtc.Kvtc):
            spent = sum(total_bits([block for block, _ in plan]) for plan in baseline.plans)
            assert 0.9 * 16 * 192 / baseline.target <= spent <= 16 * 192 / baseline.target, name
            latents = baseline.encode(recorded()).sections["latents"]
            assert len(latents) <= (SESSION_TOKENS - 132) * (spent + 7) / 8 + 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_published_form_keeps_four_sinks_and_128_recent_tokens_exactly(dtype: torch.dtype) -> None:
    here = calibration(dtype)
    snapshot = capture(here.model, random_sessions(1, 200, 9)[0])
    baseline = kvtc.family(here)[2]
    decoded = baseline.decode(baseline.encode(snapshot))
    kept = torch.tensor([*range(4), *range(72, 200)])
    for ours, exact in zip(decoded.layers, snapshot.layers, strict=True):
        stored = torch.float16 if dtype == torch.float32 else dtype
        assert torch.equal(ours.keys[:, kept], exact.keys[:, kept].to(stored).to(dtype))
        assert torch.equal(ours.values[:, kept], exact.values[:, kept].to(stored).to(dtype))
        assert not torch.equal(ours.keys[:, 4:72], exact.keys[:, 4:72])


@pytest.mark.parametrize("count", [0, 1, 5, 132, 133])
@pytest.mark.parametrize("name", ["kvtc-16x", "kvtc-ideal-16x"])
def test_edges_work(name: str, count: int) -> None:
    snapshot = recorded(count)
    decoded = baselines()[name].decode(from_bytes(to_bytes(baselines()[name].encode(snapshot))))
    assert decoded.tokens == count
    assert all(layer.keys.shape[1] == count for layer in decoded.layers)
    if name == "kvtc-16x" and count <= 132:
        for ours, exact in zip(decoded.layers, snapshot.layers, strict=True):
            assert torch.equal(ours.keys, exact.keys.half().float())


def self_entropy_bits(symbols: torch.Tensor) -> float:
    """The empirical entropy of each column under its own frequencies, summed over all symbols."""
    bits = 0.0
    for column in symbols.T.numpy():
        counts = np.unique(column, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits


@pytest.mark.parametrize("name", ["kvtc-ideal-4x", "kvtc-ideal-8x", "kvtc-ideal-16x", "kvtc-ideal-32x"])
def test_ideal_rate_is_within_three_percent_of_the_static_entropy(name: str) -> None:
    baseline = baselines()[name]
    assert isinstance(baseline, kvtc_ideal.KvtcIdeal)
    snapshots = [recorded(500, seed) for seed in range(20, 26)]
    ideal = self_entropy_bits(torch.cat([baseline.symbols(one) for one in snapshots]))
    coded = 8 * sum(len(baseline.encode(one).sections["latents"]) for one in snapshots)
    assert 0.97 * ideal <= coded <= 1.03 * ideal + 64 * len(snapshots)


@pytest.mark.parametrize("name", ["kvtc-ideal-4x", "kvtc-ideal-16x", "kvtc-ideal-64x"])
def test_ideal_errors_are_within_one_step_and_only_quiet_components_are_left_out(name: str) -> None:
    baseline, snapshot = baselines()[name], recorded()
    assert isinstance(baseline, kvtc_ideal.KvtcIdeal)
    decoded = baseline.decode(baseline.encode(snapshot))
    exact, ours = (torch.cat(baseline.transform.analyse(one), 1)[:, baseline.coded] for one in (snapshot, decoded))
    assert float((exact - ours).abs().max()) <= 1.06 * baseline.step
    assert bool(((exact.abs() > DEAD_ZONE * baseline.step) == (baseline.symbols(snapshot) != 0)).float().mean() > 0.999)
    left_out = torch.ones(len(baseline.tables.deviations), dtype=torch.bool)
    left_out[baseline.coded] = False
    assert bool((baseline.tables.deviations[left_out] < 1.05 * 2.0**LOWEST_SCALE_LOG2 * baseline.step).all())


@pytest.mark.parametrize("name", ["kvtc-16x", "kvtc-ideal-16x"])
def test_mismatches_are_refused(name: str) -> None:
    baseline = baselines()[name]
    foreign = capture(tiny_model(seed=5), random_sessions(1, 20)[0])
    with pytest.raises(MismatchError, match="weights"):
        baseline.encode(foreign)
    other = baselines()["kvtc-32x" if name == "kvtc-16x" else "kvtc-ideal-32x"]
    with pytest.raises(MismatchError) as caught:
        other.decode(baseline.encode(recorded(20)))
    assert baseline.fingerprint[:16] in str(caught.value)
    assert other.fingerprint[:16] in str(caught.value)
    assert len({one.fingerprint for one in baselines().values()}) == len(baselines())


@pytest.mark.parametrize("name", ["kvtc-16x", "kvtc-ideal-16x"])
def test_every_byte_of_every_section_is_read(name: str) -> None:
    baseline = baselines()[name]
    encoded = baseline.encode(recorded(200))
    for section in set(encoded.sections) - {"tokens", "origin", "positions"}:
        for damaged in (encoded.sections[section] + b"\0\0\0\0", encoded.sections[section][:-4]):
            with pytest.raises(FormatError):
                baseline.decode(dataclasses.replace(encoded, sections={**encoded.sections, section: damaged}))
        missing = {key: data for key, data in encoded.sections.items() if key != section}
        with pytest.raises(FormatError, match=section):
            baseline.decode(dataclasses.replace(encoded, sections=missing))
    with pytest.raises(FormatError, match="spare"):
        baseline.decode(dataclasses.replace(encoded, sections={**encoded.sections, "spare": b""}))


def test_layers_that_do_not_hold_the_same_tokens_are_refused() -> None:
    sliding = Calibration(build("mistral").float(), None, [tokens(40, seed) for seed in range(4)])
    with pytest.raises(InputError, match="sliding window"):
        kvtc_ideal.family(sliding)
    snapshot = recorded(20)
    layer = snapshot.layers[1]
    shorter = dataclasses.replace(
        layer, keys=layer.keys[:, 1:], values=layer.values[:, 1:], positions=layer.positions[1:]
    )
    uneven = dataclasses.replace(snapshot, layers=(snapshot.layers[0], shorter, snapshot.layers[2]))
    with pytest.raises(InputError, match="different tokens"):
        baselines()["kvtc-16x"].encode(uneven)


def test_calibration_without_a_middle_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens to learn from"):
        kvtc.family(Calibration(calibration().model, None, random_sessions(5, 100)))


def test_codec_bytes_count_axes_means_and_plan() -> None:
    for baseline in baselines().values():
        if isinstance(baseline, kvtc.Kvtc):
            ranks = [max((block.start + block.size for block, _ in plan), default=0) for plan in baseline.plans]
            blocks = sum(map(len, baseline.plans))
            assert baseline.codec_bytes == 2 * 96 * (2 + sum(ranks)) + 7 * blocks
        if isinstance(baseline, kvtc_ideal.KvtcIdeal):
            assert baseline.codec_bytes > 2 * 96 * (2 + len(baseline.coded))
