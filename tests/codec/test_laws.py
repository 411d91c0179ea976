"""The laws of the house, on a codec fitted to a tiny model."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.directory import load_tinyvae
from kvcompress.codec.promise import Setting
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.settings import CommonSettings
from kvcompress.codec.size_ratio import encode_at_size_ratio
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError, FormatError, InputError, MismatchError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.fit.trials import Bench, trials_from_sessions
from kvcompress.format.ans import decode_symbols
from kvcompress.format.container import from_bytes, load, save, to_bytes
from kvcompress.hf import capture
from kvcompress.hf.channels import to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV
from tests.codec.conftest import random_sessions, tiny_model
from tinyvae.model import common_reach, reaches
from tinyvae.quantize import LEVELS

KINDS = (torch.int8, torch.uint8, torch.int16, torch.bfloat16, torch.float16, torch.float32)
QPS = (0, 40, 80, 120, 200)


def same(left: KVSnapshot, right: KVSnapshot) -> bool:
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) and torch.equal(a.positions, b.positions)
        for a, b in zip(left.layers, right.layers, strict=True)
    )


def weighted_error(codec: TinyVAECodec, exact: KVSnapshot, decoded: KVSnapshot) -> float:
    """The squared error in the codec's own metric: that of its latents."""
    rope = rope_of(exact.origin)
    difference = to_channels(exact, codec.groups[0], rope) - to_channels(decoded, codec.groups[0], rope)
    return float((difference @ codec.vae(0).transform.analysis).square().sum())


@pytest.mark.parametrize("qp", QPS)
def test_symbols_survive_bytes_and_decode_equals_reconstruct(
    codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path, qp: int
) -> None:
    save(tmp_path / "a.kvz", codec.encode(snapshot, qp))
    decoded = codec.decode(load(tmp_path / "a.kvz"))
    assert same(decoded, codec.reconstruct(snapshot, qp))
    assert torch.equal(decoded.token_ids, snapshot.token_ids)
    assert decoded.origin == snapshot.origin


@pytest.mark.parametrize("qp", QPS)
def test_encode_is_deterministic(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int) -> None:
    assert to_bytes(codec.encode(snapshot, qp)) == to_bytes(codec.encode(snapshot, qp))


def test_no_float_decides_a_bit(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    """Disturb every float the decoder computes with: the symbols it reads stay the same."""
    encoded = codec.encode(snapshot, 100)
    vae = codec.vae(0)
    disturbed = copy.deepcopy(vae)
    for name, tensor in disturbed.state_dict().items():
        if tensor.is_floating_point():
            tensor.mul_(1.1).add_(0.01)
        assert tensor.dtype in KINDS, name
    symbols = []
    for decoder in (vae, disturbed):
        levels = decoder.levels(snapshot.token_ids, decoder.qps(snapshot.token_ids, 100))
        assert levels.dtype == torch.int32
        symbols.append(decode_symbols(encoded.sections["latents.0"], levels.numpy(), codec.bank))
    assert np.array_equal(*symbols)
    assert np.abs(symbols[0]).sum() > 0


@pytest.mark.parametrize("qp", [0, 12, 40, 90])
def test_latents_below_the_lowest_level_are_not_coded(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int) -> None:
    config, ids, vae = codec.vae(0).config, snapshot.token_ids, copy.deepcopy(codec.vae(0))
    assert config.lowest_level == FitSettings().lowest_level > 0
    vae.base_level[:, ::2] -= 60  # every other latent is narrow
    qps = vae.qps(ids, qp)
    levels, lowest = vae.levels(ids, qps), qps.clamp(0, config.lowest_level)[:, None]
    vae.config = dataclasses.replace(config, lowest_level=0)
    every = vae.levels(ids, qps)[:, : levels.shape[1]]
    assert torch.equal(levels, torch.where(every < lowest, -1, every))
    symbols, _ = vae.quantize(*codec.latents(snapshot, 0), qps)
    assert symbols.shape[1] >= levels.shape[1]
    with pytest.raises(ValueError, match="lowest level"):
        dataclasses.replace(config, lowest_level=LEVELS)


def test_a_codec_that_codes_every_level_names_none_as_versions_before_did(codec: TinyVAECodec) -> None:
    assert "lowest_level" not in dataclasses.replace(codec.vae(0).config, lowest_level=0).to_json()
    assert codec.config_json()["groups"][0]["config"]["lowest_level"] == codec.vae(0).config.lowest_level


def test_finer_rates_are_closer_and_larger(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    errors, sizes = [], []
    for qp in QPS:
        decoded = codec.reconstruct(snapshot, qp)
        errors.append(weighted_error(codec, snapshot, decoded))
        sizes.append(len(to_bytes(codec.encode(snapshot, qp))))
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert errors[-1] < 0.3 * errors[0]


def test_rate_is_measured_and_the_estimate_bounds_it(codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path) -> None:
    encoded = codec.encode(snapshot, 120)
    save(tmp_path / "a.kvz", encoded)
    ideal_bits = sum(codec.token_bits(snapshot, 120))
    coded_bits = 8 * len(encoded.sections["latents.0"])
    assert ideal_bits <= coded_bits <= 1.01 * ideal_bits + 128
    assert (tmp_path / "a.kvz").stat().st_size == len(to_bytes(encoded)) > coded_bits / 8


def test_fidelity_improves_with_the_rate_and_the_finest_is_nearly_exact(codec: TinyVAECodec, model: object) -> None:
    bench = Bench(model, codec, trials_from_sessions(model, random_sessions(1, 200, seed=4), continuation_tokens=80))
    settings = [Setting("latents", 0), Setting("latents", 160)]
    bench.measure(0, settings)
    coarse, fine = (bench.ledger.losses[0, setting] for setting in settings)
    assert fine.kl_nats < coarse.kl_nats
    assert fine.top1_lost <= coarse.top1_lost


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_edges_work(codec: TinyVAECodec, model: object, tokens: int) -> None:
    short = capture(model, random_sessions(1, 8)[0][:tokens])
    decoded = codec.decode(codec.encode(short, 100))
    assert same(decoded, codec.reconstruct(short, 100))
    assert decoded.tokens == tokens


def test_constant_cache_works(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    layers = tuple(
        dataclasses.replace(layer, keys=torch.ones_like(layer.keys), values=torch.zeros_like(layer.values))
        for layer in snapshot.layers
    )
    constant = dataclasses.replace(snapshot, layers=layers)
    assert same(codec.decode(codec.encode(constant, 100)), codec.reconstruct(constant, 100))


def test_huge_values_survive_through_escapes(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    layers = tuple(dataclasses.replace(layer, values=layer.values * 1000) for layer in snapshot.layers)
    wild = dataclasses.replace(snapshot, layers=layers)
    assert same(codec.decode(codec.encode(wild, 60)), codec.reconstruct(wild, 60))


def test_nan_is_refused(snapshot: KVSnapshot) -> None:
    keys = snapshot.layers[0].keys.clone()
    keys[0, 0, 0] = float("nan")
    layers = (dataclasses.replace(snapshot.layers[0], keys=keys), *snapshot.layers[1:])
    with pytest.raises(InputError, match="NaN"):
        dataclasses.replace(snapshot, layers=layers)


def test_mismatch_refused_other_model(codec: TinyVAECodec) -> None:
    foreign = capture(tiny_model(seed=5), random_sessions(1, 20)[0])
    with pytest.raises(MismatchError, match="weights"):
        codec.encode(foreign, 100)


def test_mismatch_refused_other_codec(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    encoded = codec.encode(snapshot, 100)
    other = copy.deepcopy(codec)
    other.table_counts[0] += 1
    other._fingerprint = None
    with pytest.raises(MismatchError) as caught:
        other.decode(encoded)
    assert codec.fingerprint[:16] in str(caught.value)
    assert other.fingerprint[:16] in str(caught.value)


@pytest.mark.parametrize("qp", [-1, HIGHEST_QP + 1])
def test_impossible_rates_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int) -> None:
    with pytest.raises(InputError, match="QP"):
        codec.encode(snapshot, qp)
    encoded = codec.encode(snapshot, 100)
    lied = dataclasses.replace(encoded, settings={"rate": qp})
    with pytest.raises(FormatError, match="rate"):
        codec.decode(lied)


def test_missing_section_is_refused(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    encoded = codec.encode(snapshot, 100)
    sections = {name: data for name, data in encoded.sections.items() if name != "latents.0"}
    with pytest.raises(FormatError, match=r"latents\.0"):
        codec.decode(dataclasses.replace(encoded, sections=sections))


def test_checkpoint_round_trip_keeps_the_fingerprint_and_the_bytes(
    codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path
) -> None:
    save_codec(codec, tmp_path / "codec")
    loaded = load_tinyvae(tmp_path / "codec")
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.tiers == codec.tiers
    assert to_bytes(loaded.encode(snapshot, 100)) == to_bytes(codec.encode(snapshot, 100))


def test_files_need_not_repeat_the_origin_that_their_codec_keeps(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    assert codec.preset.origin
    encoded = codec.encode(snapshot, 100)
    assert len(encoded.sections["origin"]) < 48
    assert len(to_bytes(encoded)) - len(encoded.sections["latents.0"]) - len(encoded.sections["tokens"]) < 300


@pytest.mark.parametrize(
    "changes",
    [{"model_name": "elsewhere"}, {"dtype": "bfloat16"}, {"next_position": 500}, {"rope_layers": (True,) * 3}],
)
def test_an_origin_unlike_the_codecs_own_survives(
    codec: TinyVAECodec, snapshot: KVSnapshot, changes: dict[str, Any]
) -> None:
    origin = dataclasses.replace(snapshot.origin, **changes)
    dtype = CACHE_DTYPES[origin.dtype]
    layers = tuple(LayerKV(kv.keys.to(dtype), kv.values.to(dtype), kv.positions) for kv in snapshot.layers)
    decoded = codec.decode(from_bytes(to_bytes(codec.encode(KVSnapshot(layers, snapshot.token_ids, origin), 100))))
    assert decoded.origin == origin


def test_codec_without_an_origin_writes_it_whole_and_reads_no_file_that_leans_on_one(
    codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path
) -> None:
    config = {name: value for name, value in codec.config_json().items() if name != "origin"}
    old = TinyVAECodec(**config).eval()
    old.load_state_dict(codec.state_dict())
    save_codec(old, tmp_path / "codec")
    old = load_tinyvae(tmp_path / "codec")
    assert old.fingerprint == codec.fingerprint
    whole = old.encode(snapshot, 100)
    assert same(codec.decode(whole), old.decode(whole))
    assert old.decode(whole).origin == snapshot.origin
    with pytest.raises(MismatchError, match=r"origin.*found none.*--codec"):
        old.decode(codec.encode(snapshot, 100))


def test_header_and_origin_must_agree(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    encoded = codec.encode(snapshot, 100)
    with pytest.raises(FormatError, match="name different models"):
        codec.decode(dataclasses.replace(encoded, model={**encoded.model, "weights": "0" * 32}))


def test_damaged_checkpoints_are_refused_in_one_line(codec: TinyVAECodec, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_tinyvae(tmp_path)
    save_codec(codec, tmp_path / "codec")
    weights = tmp_path / "codec" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError) as caught:
        load_tinyvae(tmp_path / "codec")
    assert "\n" not in str(caught.value)


def test_size_ratio_is_met_by_the_finest_file_that_meets_it(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    loose = encode_at_size_ratio(codec, snapshot, 3.0)
    reached = snapshot.raw_bytes / len(to_bytes(loose))
    assert reached >= 3.0
    finer = codec.encode(snapshot, loose.settings["rate"] + 1, CommonSettings(size_ratio=3.0))
    assert snapshot.raw_bytes / len(to_bytes(finer)) < 3.0


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), 1e6])
def test_impossible_size_ratios_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot, ratio: float) -> None:
    with pytest.raises(InputError, match="size ratio"):
        encode_at_size_ratio(codec, snapshot, ratio)


def test_unknown_quality_is_refused(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    with pytest.raises(InputError, match="excellent"):
        encode_at_quality(codec, snapshot, "excellent")


@pytest.mark.parametrize("qp", QPS)
def test_latents_that_are_zero_are_spared_and_change_nothing(
    codec: TinyVAECodec, snapshot: KVSnapshot, qp: int
) -> None:
    vae = codec.vae(0)
    exact, context = codec.latents(snapshot, 0)
    latents = vae.quantized(exact, context, codec.qps(0, snapshot.token_ids, qp))[2]
    latents[0] = 1.0  # as a place that is coded far finer than the others
    whole = vae.prior.expected(context.hidden) + latents @ vae.transform.synthesis.dense[: latents.shape[1]]
    assert torch.allclose(vae.synthesise(context, latents), whole, atol=1e-4 * float(whole.abs().max()))
    reach = reaches(latents)
    assert int(reach[0]) == latents.shape[1]
    assert common_reach(reach[:1]) == int(reach[0])
    assert common_reach(reach) <= int(reach[1:].max())
