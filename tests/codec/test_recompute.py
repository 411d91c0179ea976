"""The laws of the house for a codec whose first layers the model recomputes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from kvcompress.codec.directory import load_tinyvae
from kvcompress.codec.recompute import PROBE, PROBE_ENTRIES, ConditioningLayers
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import FormatError, InputError, IntegrityError, MismatchError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.fit.fitter import fit_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.format.container import load, save, to_bytes
from kvcompress.hf import capture, recompute_with
from kvcompress.hf.partial_prefill import Recompute
from kvcompress.snapshot import KVSnapshot, LayerKV, Origin
from tests.codec.conftest import promised, random_sessions, tiny_model
from tests.codec.test_laws import same

SMALL = FitSettings(rank=16, prior_rank=8, prior_taps=2, prior_width=24, fisher_sessions=4, continuation_tokens=32)


def fitted(model: object, recompute_layers: int) -> TinyVAECodec:
    settings = dataclasses.replace(SMALL, recompute_layers=recompute_layers)
    codec, _ = fit_codec(model, None, random_sessions(19, 128), settings, lambda stage, done, total: None)
    codec.promises = promised({"transparent": 120, "high": 90, "usable": 60})
    return codec


@pytest.fixture(scope="module")
def partial(model: LlamaForCausalLM) -> TinyVAECodec:
    codec = fitted(model, 1)
    codec.recompute = recompute_with(model)
    return codec


def test_only_layers_above_the_known_ones_are_coded(partial: TinyVAECodec) -> None:
    assert partial.groups == [(2,)]
    assert partial.conditioning == [ConditioningLayers((0, 1))]


@pytest.mark.parametrize("qp", [0, 60, 120])
def test_decode_equals_reconstruct_and_known_layers_are_exact(
    partial: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path, qp: int
) -> None:
    save(tmp_path / "a.kvz", partial.encode(snapshot, qp))
    decoded = partial.decode(load(tmp_path / "a.kvz"))
    assert same(decoded, partial.reconstruct(snapshot, qp))
    for ours, theirs in zip(decoded.layers[:2], snapshot.layers[:2], strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    assert decoded.origin == snapshot.origin


def test_a_codec_says_how_many_layers_it_recomputes_and_survives_its_directory(
    partial: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path
) -> None:
    save_codec(partial, tmp_path / "codec")
    again = load_tinyvae(tmp_path / "codec")
    assert again.recompute_layers == 1
    assert again.fingerprint == partial.fingerprint
    again.recompute = partial.recompute
    encoded = partial.encode(snapshot, 100)
    assert encoded.settings["recompute_layers"] == 1
    assert same(again.decode(encoded), partial.decode(encoded))


def test_encoding_needs_no_model_and_decoding_asks_for_it(partial: TinyVAECodec, snapshot: KVSnapshot) -> None:
    alone = copy.deepcopy(partial)
    alone.recompute = None
    encoded = alone.encode(snapshot, 100)
    assert to_bytes(encoded) == to_bytes(partial.encode(snapshot, 100))
    with pytest.raises(InputError, match=r"first 2 layers.*--model"):
        alone.decode(encoded)


def moved(recompute: Recompute, factor: float) -> Recompute:
    def other(token_ids: Tensor, layers: int, origin: Origin) -> Sequence[LayerKV]:
        return [
            LayerKV(layer.keys * factor, layer.values * factor, layer.positions)
            for layer in recompute(token_ids, layers, origin)
        ]

    return other


def test_no_recomputed_float_decides_a_bit(partial: TinyVAECodec, snapshot: KVSnapshot, model: object) -> None:
    """Known layers that differ a little move the reconstruction a little: the same symbols are read."""
    encoded, elsewhere = partial.encode(snapshot, 100), copy.deepcopy(partial)
    exact = partial.decode(encoded).layers[2].values
    moves = []
    for difference in (1e-6, 1e-4):
        elsewhere.recompute = moved(recompute_with(model), 1 + difference)
        moves.append(float((elsewhere.decode(encoded).layers[2].values - exact).abs().max()))
    assert 0 < moves[0] < 1e-4 * float(exact.abs().max())
    assert 30 < moves[1] / moves[0] < 300


def test_layers_that_are_not_the_recorded_ones_are_refused(partial: TinyVAECodec, snapshot: KVSnapshot) -> None:
    encoded, elsewhere = partial.encode(snapshot, 100), copy.deepcopy(partial)
    assert partial.recompute is not None
    elsewhere.recompute = moved(partial.recompute, 1.5)
    with pytest.raises(IntegrityError, match=r"layer 1 .* differs by 50%"):
        elsewhere.decode(encoded)


def test_a_cache_that_went_on_from_a_lossy_file_is_refused_at_encode(
    partial: TinyVAECodec, codec: TinyVAECodec, snapshot: KVSnapshot
) -> None:
    with pytest.raises(InputError, match=r"lossy file.*--recompute-layers 0"):
        partial.encode(codec.reconstruct(snapshot, 40), 100)


def test_a_restored_session_that_went_on_is_stored_again(partial: TinyVAECodec, model: LlamaForCausalLM) -> None:
    """Known layers are exact, and what the model adds to them is what it would recompute: they depend on no other."""
    from kvcompress.hf import restore

    ids = random_sessions(1, 80, seed=6)[0]
    restored = restore(partial.decode(partial.encode(capture(model, ids[:60]), 60)), model)
    with torch.inference_mode():
        model(input_ids=ids[None, 60:], past_key_values=restored, use_cache=True)
    again = capture(model, ids, cache=restored)
    decoded, plain = partial.decode(partial.encode(again, 60)), partial.reconstruct(again, 60)
    for ours, theirs in zip(decoded.layers, plain.layers, strict=True):  # other kernels for 20 tokens than for 80
        assert torch.allclose(ours.values, theirs.values, atol=1e-4 * float(theirs.values.abs().max()))


def test_another_model_is_refused(partial: TinyVAECodec, snapshot: KVSnapshot) -> None:
    encoded, elsewhere = partial.encode(snapshot, 100), copy.deepcopy(partial)
    elsewhere.recompute = recompute_with(tiny_model(1))
    with pytest.raises(MismatchError, match="weights"):
        elsewhere.decode(encoded)


def test_codecs_of_other_layers_refuse_the_file(
    partial: TinyVAECodec, codec: TinyVAECodec, snapshot: KVSnapshot
) -> None:
    assert codec.fingerprint != partial.fingerprint
    with pytest.raises(MismatchError):
        codec.decode(partial.encode(snapshot, 100))


@pytest.mark.parametrize("tokens", [0, 1, 2, PROBE_ENTRIES + 1])
def test_edges_work(partial: TinyVAECodec, model: LlamaForCausalLM, tokens: int) -> None:
    snapshot = capture(model, random_sessions(1, 32)[0][:tokens])
    encoded = partial.encode(snapshot, 100)
    assert len(encoded.sections[PROBE]) == 2 * min(tokens, PROBE_ENTRIES)
    assert same(partial.decode(encoded), partial.reconstruct(snapshot, 100))


def test_tokens_that_were_dropped_stay_dropped(partial: TinyVAECodec, snapshot: KVSnapshot) -> None:
    keep = torch.cat([torch.arange(4), torch.arange(9, 80, 3)])
    layers = tuple(LayerKV(kv.keys[:, keep], kv.values[:, keep], kv.positions[keep]) for kv in snapshot.layers)
    pruned = dataclasses.replace(snapshot, layers=layers)
    decoded = partial.decode(partial.encode(pruned, 100))
    assert same(decoded, partial.reconstruct(pruned, 100))
    assert all(torch.equal(layer.positions, keep) for layer in decoded.layers)


def test_a_coded_layer_may_not_hold_more_than_its_predictor(partial: TinyVAECodec, snapshot: KVSnapshot) -> None:
    keep = torch.arange(40)
    known = snapshot.layers[1]
    layers = (snapshot.layers[0], LayerKV(known.keys[:, keep], known.values[:, keep], keep), snapshot.layers[2])
    with pytest.raises(InputError, match="does not hold all tokens"):
        partial.encode(dataclasses.replace(snapshot, layers=layers), 100)


def test_a_probe_of_the_wrong_length_is_refused(partial: TinyVAECodec, snapshot: KVSnapshot) -> None:
    encoded = partial.encode(snapshot, 100)
    cut = dataclasses.replace(encoded, sections={**encoded.sections, PROBE: encoded.sections[PROBE][:-1]})
    with pytest.raises(FormatError, match="31 bytes instead of 32"):
        partial.decode(cut)
    gone = dataclasses.replace(encoded, sections={k: v for k, v in encoded.sections.items() if k != PROBE})
    with pytest.raises(FormatError, match=PROBE):
        partial.decode(gone)


@pytest.mark.parametrize("layers", [-1, 2, 3])
def test_layers_that_leave_nothing_to_code_are_refused(model: object, layers: int) -> None:
    with pytest.raises(InputError, match="Choose 0 to 1"):
        fitted(model, layers)


def test_known_layers_predict_better_than_tokens_alone(
    partial: TinyVAECodec, codec: TinyVAECodec, snapshot: KVSnapshot
) -> None:
    """The claim of the trade-off: what is left of the same layer is smaller once earlier layers are known."""
    from kvcompress.hf.channels import to_channels
    from kvcompress.hf.rope import rope_of

    rope = rope_of(snapshot.origin)
    exact = to_channels(snapshot, (2,), rope)
    known = partial.conditioning[0].rows(dict(enumerate(snapshot.layers)), snapshot.tokens, rope)
    told = partial.vae(0).prior(snapshot.token_ids, known)
    of_tokens = codec.vae(0).prior(snapshot.token_ids)[:, -exact.shape[1] :]
    assert float((exact - told).square().sum()) < 0.8 * float((exact - of_tokens).square().sum())


def test_windows_are_predicted_by_layers_that_hold_their_tokens() -> None:
    kinds = ("sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention")
    assert ConditioningLayers.of(3, 2, kinds) == ConditioningLayers((0, 2))
    assert ConditioningLayers.of(4, 2, kinds) == ConditioningLayers((1,))
    assert ConditioningLayers.of(4, 0, kinds) == ConditioningLayers()
    assert ConditioningLayers.of(1, 1, ("sliding_attention",) * 2 + ("full_attention",)) == ConditioningLayers((0, 1))
    assert ConditioningLayers.of(9, 6, ("full_attention",) * 10) == ConditioningLayers((4, 5, 6))
    assert ConditioningLayers.of(2, 1, ("sliding_attention",) * 2 + ("full_attention",)) == ConditioningLayers()


def test_sliding_window_models_restore_their_windows() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=24,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        max_position_embeddings=256,
    )
    sliding = Gemma3ForCausalLM(config).eval()
    settings = dataclasses.replace(SMALL, recompute_layers=1)
    codec, _ = fit_codec(sliding, None, random_sessions(8, 96), settings, lambda stage, done, total: None)
    codec.recompute = recompute_with(sliding)
    assert codec.groups == [(2,), (3,)]
    assert codec.conditioning == [ConditioningLayers((1,)), ConditioningLayers((0,))]
    snapshot = capture(sliding, random_sessions(1, 70, seed=2)[0])
    decoded = codec.decode(codec.encode(snapshot, 150))
    assert same(decoded, codec.reconstruct(snapshot, 150))
    for ours, theirs in zip(decoded.layers[:2], snapshot.layers[:2], strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.positions, theirs.positions)


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("reach", [4, 32])
def test_trailing_means_are_those_of_a_loop_over_tokens(tokens: int, reach: int) -> None:
    from tinyvae.prior import trailing_mean

    rows = torch.randn(tokens, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    decay, mean, expected = torch.exp(torch.tensor(-1 / reach)), torch.zeros(3), []
    for row in rows:
        mean = decay * mean + (1 - decay) * row
        expected.append(mean)
    assert torch.allclose(trailing_mean(rows, reach), torch.stack(expected) if expected else rows, atol=1e-5)


def test_the_directions_looked_at_in_the_past_are_those_that_tell() -> None:
    from tinyvae.fit.moments import Moments
    from tinyvae.transform import Metric

    generator = torch.Generator().manual_seed(0)
    known = torch.randn(3000, 5, generator=generator)
    channels = 2.0 * known[:, 1:2] + 3.0 * known[:, 3:4] + 0.01 * torch.randn(3000, 1, generator=generator)
    moments = Moments.empty(5, 1, 5)
    moments.add(known, channels)
    directions = moments.directions(Metric.of(torch.eye(1, dtype=torch.float64)), 1)
    assert directions.shape == (5, 1)
    shares = directions.square() / directions.square().sum()
    assert float(shares[[1, 3]].sum()) > 0.99
