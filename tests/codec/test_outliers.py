"""Sinks and other outliers are found where they are, coded finer, and nowhere assumed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress.codec import outliers as outliers_module
from kvcompress.codec.outliers import OUTLIERS, Outliers
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import FormatError
from kvcompress.fit.first_place import is_sink
from kvcompress.fit.fitter import fit_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.format.container import from_bytes, to_bytes
from kvcompress.hf import capture
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import random_sessions, tiny_model

MASSIVE_TOKEN = 7
QP = 120


def massive_model() -> LlamaForCausalLM:
    """Return a model in which one token, wherever it stands, has activations far from those of all others."""
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.model.embed_tokens.weight[MASSIVE_TOKEN] = 0.0
        model.model.embed_tokens.weight[MASSIVE_TOKEN, 11] = 300.0
        for layer in model.model.layers:  # what that direction writes is far wider than anything else
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight[:, 11] = 12.0
    return model.eval()


def without_massive(sessions: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.where(ids == MASSIVE_TOKEN, MASSIVE_TOKEN + 1, ids) for ids in sessions]


@pytest.fixture(scope="module")
def massive() -> tuple[LlamaForCausalLM, TinyVAECodec, KVSnapshot]:
    model = massive_model()
    settings = FitSettings(rank=192, prior_rank=16, prior_taps=2, fisher_sessions=4, continuation_tokens=32)
    sessions = without_massive(random_sessions(12, 128))
    codec, _ = fit_codec(model, None, sessions, settings, lambda stage, done, total: None)
    ids = without_massive(random_sessions(1, 90, seed=5))[0]
    ids[40] = MASSIVE_TOKEN
    return model, codec, capture(model, ids)


def relative_errors(codec: TinyVAECodec, snapshot: KVSnapshot) -> torch.Tensor:
    """Return [T] the relative error of each token's keys and values after encode and decode."""
    decoded = codec.decode(from_bytes(to_bytes(codec.encode(snapshot, QP))))
    lost, whole = torch.zeros(snapshot.tokens), torch.zeros(snapshot.tokens)
    for exact, found in zip(snapshot.layers, decoded.layers, strict=True):
        for part, other in ((exact.keys, found.keys), (exact.values, found.values)):
            lost += (part - other).square().sum((0, 2))
            whole += part.square().sum((0, 2))
    return (lost / whole).sqrt()


def test_a_sink_in_the_middle_is_found_and_nothing_else(massive: tuple[object, TinyVAECodec, KVSnapshot]) -> None:
    _, codec, snapshot = massive
    found = codec.analyse(snapshot).outliers
    assert found.tokens.tolist() == [40]
    assert OUTLIERS in codec.encode(snapshot, QP).sections


def test_an_outlier_is_coded_at_least_as_well_as_others(
    massive: tuple[object, TinyVAECodec, KVSnapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codec, snapshot = massive
    errors, found = relative_errors(codec, snapshot), len(to_bytes(codec.encode(snapshot, QP)))
    assert float(errors[40]) <= float(errors.median())
    monkeypatch.setattr(outliers_module, "PROPORTION", float("inf"))
    assert OUTLIERS not in codec.encode(snapshot, QP).sections
    assert len(to_bytes(codec.encode(snapshot, QP))) > found  # each symbol of it is an escape then


def test_what_is_decoded_of_an_outlier_predicts_no_other(massive: tuple[object, TinyVAECodec, KVSnapshot]) -> None:
    _, codec, snapshot = massive
    latents, context = codec.analyse(snapshot).latents[0]
    vae, qps = codec.vae(0), codec.qps(0, snapshot.token_ids, QP)
    lifts = torch.zeros(snapshot.tokens, dtype=torch.int32)
    lifts[40] = 80
    marked, others = dataclasses.replace(context, lifts=lifts), torch.arange(snapshot.tokens) != 40
    wider = latents.clone()
    wider[40] *= 3
    one, two = (vae.quantized(rows, marked, qps)[2] for rows in (latents, wider))
    assert torch.equal(one[others], two[others])
    assert not torch.equal(one[40], two[40])
    plain = [vae.quantized(rows, context, qps)[2] for rows in (latents, wider)]
    assert not torch.equal(plain[0][others], plain[1][others])  # unmarked it would


def test_a_model_without_sinks_has_no_outliers(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    assert not codec.vae(0).config.first
    assert not len(codec.analyse(snapshot).outliers.tokens)
    assert OUTLIERS not in codec.encode(snapshot, QP).sections


def test_decode_equals_reconstruct_with_outliers(massive: tuple[object, TinyVAECodec, KVSnapshot]) -> None:
    _, codec, snapshot = massive
    decoded, plain = codec.decode(codec.encode(snapshot, QP)), codec.reconstruct(snapshot, QP)
    for ours, theirs in zip(decoded.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_place_0_is_a_sink_only_where_its_share_is_out_of_proportion() -> None:
    assert is_sink(torch.tensor([0.3, 0.01]), 1000)
    assert not is_sink(torch.tensor([0.01, 0.3]), 1000)
    assert not is_sink(torch.zeros(0), 0)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0\0", b"\1\0\0\0", b"\1\0\0\0\x50\0\0\0\1\1", b"\2\0\0\0" + 2 * b"\5\0\0\0\1\1", b"\xff\xff\xff\xff"],
)
def test_hostile_sections_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="outliers"):
        Outliers.from_bytes(data, 80)


def test_the_section_survives_bytes() -> None:
    found = Outliers(torch.tensor([3, 70]), torch.tensor([40, 255], dtype=torch.int32), torch.tensor([32, 0]).int())
    again = Outliers.from_bytes(found.to_bytes(), 80)
    for field in dataclasses.fields(Outliers):
        assert torch.equal(getattr(again, field.name), getattr(found, field.name))
    lifts, finer = again.spread(80)
    assert lifts[70] == 255
    assert finer.sum() == 32
