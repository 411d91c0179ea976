"""The closed-form fit: its parts against plain computation, its bounds, its bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import harvest
from kvcompress.data.shards import Shards
from kvcompress.errors import InputError
from kvcompress.fit.budget import NAMES_BYTES, SCALE_BYTES
from kvcompress.fit.checkpoint import save_codec
from kvcompress.fit.fitter import Fitter, fit_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.hf import capture
from kvcompress.hf.channels import LayerShape, from_channels, group_layers, layer_shapes, to_channels
from kvcompress.hf.gradients import cache_gradients
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import random_sessions, tiny_model
from tinyvae.fit.moments import Coherence, Moments, TokenMeans
from tinyvae.prior import lagged
from tinyvae.quantize import LEVELS, dequantize, quantize
from tinyvae.transform import Metric, evened, sensitivity_weight, weighted_klt


def spd(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size


def test_full_rank_transform_is_its_own_inverse_and_whitens_the_weight() -> None:
    covariance, weight = spd(12, 0), spd(12, 1) + torch.eye(12)
    analysis, synthesis, variances = weighted_klt(covariance, Metric.of(weight), 12)
    identity = torch.eye(12, dtype=torch.float64)
    assert torch.allclose(analysis @ synthesis, identity, atol=1e-9)
    assert torch.allclose(synthesis @ weight @ synthesis.T, identity, atol=1e-9)
    assert torch.allclose(analysis.T @ covariance @ analysis, variances.diag(), atol=1e-9)
    assert bool((variances.diff() <= 1e-12).all())


def test_sensitivity_weight_of_equal_directions_is_the_identity() -> None:
    weight = sensitivity_weight(3.0 * torch.eye(5, dtype=torch.float64))
    assert torch.allclose(weight.matrix(), torch.eye(5, dtype=torch.float64))


def test_a_metric_is_its_matrix_and_the_square_of_its_root() -> None:
    weight = spd(9, 4)
    metric = Metric.of(weight).scaled(2.0)
    root, inverse = metric.roots()
    assert torch.allclose(metric.matrix(), 2 * weight)
    assert torch.allclose(metric.diagonal(), 2 * weight.diagonal())
    assert torch.allclose(root @ root, 2 * weight)
    assert torch.allclose(root @ inverse, torch.eye(9, dtype=torch.float64), atol=1e-9)


def test_steps_are_evened_by_what_an_error_costs() -> None:
    fisher = spd(6, 7)
    covariance, metric = spd(6, 8), sensitivity_weight(fisher)
    _, synthesis, variances = weighted_klt(covariance, metric, 4)
    same, widths = evened(synthesis, variances, fisher, 0.0)
    assert torch.equal(same, synthesis)
    assert torch.equal(widths, variances)
    even, widths = evened(synthesis, variances, fisher, 1.0)
    cost = ((even @ fisher) * even).sum(1)
    assert torch.allclose(cost, torch.ones(4, dtype=torch.float64))  # the first four are not smoothed
    assert bool((widths.diff() <= 0).all())
    spread = synthesis.T @ variances.diag() @ synthesis
    assert torch.allclose(even.T @ widths.diag() @ even, spread)  # units changed, the latents did not


def test_a_codec_weighs_no_more_than_its_share_of_the_model(tmp_path: Path) -> None:
    model, sessions = tiny_model(), random_sessions(12, 96)
    model_bytes, found = 2 * sum(part.numel() for part in model.parameters()), []
    for share in (0.35, 0.45, 0.6):
        settings = FitSettings(codec_share=share, prior_taps=2, fisher_sessions=4, continuation_tokens=32)
        codec, _ = fit_codec(model, None, sessions, settings, lambda stage, done, total: None)
        save_codec(codec, tmp_path / f"{share}")
        assert (tmp_path / f"{share}" / "model.safetensors").stat().st_size <= share * model_bytes
        config = codec.vae(0).config
        found.append((config.rank, config.sharp_latents))
        assert config.sharp_latents <= config.rank
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize("recompute", [0, 1])
def test_the_budget_counts_every_tensor(tmp_path: Path, recompute: int) -> None:
    """What a part weighs is foreseen to the byte, but for place 0, which the budget always allows for."""
    settings = FitSettings(rank=12, prior_taps=2, fisher_sessions=4, continuation_tokens=32, recompute_layers=recompute)
    rows = [(str(number), ids) for number, ids in enumerate(random_sessions(12, 96))]
    harvest(tiny_model(), None, rows, tmp_path, lambda stage, done, total: None, settings=settings.harvest_settings())
    fitter = Fitter(Shards(tmp_path), settings)
    codec = fitter.fit()
    config, (group,) = codec.vae(0).config, fitter.groups
    sharp = min(config.rank, config.sharp_latents) * config.channels / 2
    budgeted = fitter.budget.fixed_bytes(config.prior_rank, config.prior_taps, config.prior_width)
    budgeted += config.rank * fitter.budget.latent_bytes(group) + sharp - NAMES_BYTES
    held = sum(tensor.numel() * tensor.element_size() for tensor in codec.state_dict().values())
    if not config.first:
        budgeted -= config.prior_rank * (config.prior_width + SCALE_BYTES) + 4 * config.channels
    assert budgeted == pytest.approx(held, abs=8)


def test_gradients_that_all_tokens_share_weigh_more() -> None:
    shared, single = torch.ones(50, 3), torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    coherence = Coherence.empty((3, 2))
    coherence.add(torch.cat([shared, single], 1))
    scale = coherence.scale(0.01)
    assert scale[:3].tolist() == pytest.approx([(1 + 0.01 * 50) ** 0.5] * 3)
    assert float((scale[3:] - 1).abs().max()) < 0.05


def test_lags_look_back_and_never_ahead() -> None:
    rows = torch.arange(1.0, 5.0)[:, None]
    assert lagged(rows, 3).tolist() == [[1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert lagged(rows[:1], 3).tolist() == [[1, 0, 0]]
    assert lagged(rows[:0], 3).shape == (0, 3)


def test_moments_give_the_least_squares_solution_and_its_residual() -> None:
    generator = torch.Generator().manual_seed(0)
    features, noise = torch.randn(500, 6, generator=generator), torch.randn(500, 4, generator=generator)
    channels = features @ torch.randn(6, 4, generator=generator) + 3.0 + 0.1 * noise
    moments = Moments.empty(6, 4)
    for part in range(0, 500, 100):
        moments.add(features[part : part + 100], channels[part : part + 100])
    weight, bias = moments.solve(ridge=0.0)
    padded = torch.cat([features, torch.ones(500, 1)], 1)
    plain = torch.linalg.lstsq(padded, channels).solution
    assert torch.allclose(torch.cat([weight, bias[None]]), plain, atol=1e-4)
    residual = channels - features @ weight - bias
    assert torch.allclose(moments.residual_covariance(weight, bias).float(), residual.T @ residual / 500, atol=1e-4)
    assert torch.allclose(moments.covariance().float(), torch.cov(channels.T, correction=0), atol=1e-3)


def test_token_table_tells_tokens_with_different_means_apart() -> None:
    means = TokenMeans.empty(torch.arange(2), 3)
    ids = torch.tensor([0, 0, 1, 1] * 50)
    means.add(ids, torch.where(ids[:, None] == 0, 1.0, -1.0).expand(-1, 3))
    table = means.table(4, 2, torch.ones(3))
    assert abs(float(table[0, 0] - table[1, 0])) > 0.5
    assert float(table[2].abs().sum()) == float(table[3].abs().sum())  # never seen: the mean


@pytest.mark.parametrize("step", [0.1, 1.0, 7.0])
def test_quantiser_error_is_bounded(step: float) -> None:
    latents = torch.linspace(-20, 20, 4001)[:, None]
    symbols = quantize(latents, step, torch.zeros(4001, 1, dtype=torch.int32))
    back = dequantize(symbols, torch.full((4001, 1), step), torch.zeros_like(symbols), torch.zeros(LEVELS, 2))
    assert float((back - latents).abs().max()) <= 0.6 * step + 1e-5
    assert bool((symbols.sign() * latents.sign() >= 0).all())


def test_gradients_match_finite_differences(model: object, snapshot: KVSnapshot) -> None:
    rope = rope_of(snapshot.origin)
    continuation = random_sessions(1, 24, seed=3)[0]
    gradients = cache_gradients(model, snapshot, continuation, rope, torch.Generator().manual_seed(0))
    assert len(gradients) == len(snapshot.layers)
    for (keys, values), layer in zip(gradients, snapshot.layers, strict=True):
        assert keys.shape == layer.keys.shape
        assert values.shape == layer.values.shape
    drawn = torch.Generator().manual_seed(0)
    step, direction = 1e-2, torch.zeros_like(snapshot.layers[1].values)
    direction[0, 40] = gradients[1][1][0, 40]

    def likelihood(shift: float) -> float:
        import copy

        from kvcompress.hf import restore
        from kvcompress.metrics.fidelity import continuation_logits

        cache = restore(snapshot, model)
        cache.layers[1].values = cache.layers[1].values + shift * direction
        logits = continuation_logits(model, cache, continuation, snapshot.tokens).double().log_softmax(-1)
        exact = continuation_logits(model, restore(snapshot, model), continuation, snapshot.tokens)
        sampler = torch.Generator().set_state(copy.copy(drawn.get_state()))
        tokens = torch.multinomial(exact.float().log_softmax(-1).exp(), 1, generator=sampler)
        return float(logits.gather(1, tokens).sum())

    slope = (likelihood(step) - likelihood(-step)) / (2 * step)
    assert slope == pytest.approx(float(direction.square().sum()), rel=0.05)


def test_channels_round_trip(snapshot: KVSnapshot) -> None:
    rope, shapes = rope_of(snapshot.origin), layer_shapes(snapshot)
    layers = (0, 1, 2)
    channels = to_channels(snapshot, layers, rope)
    assert channels.shape == (80, sum(shape.channels for shape in shapes))
    again = from_channels(channels, layers, shapes, snapshot.layers[0].positions, rope, "float32")
    for index in layers:
        assert torch.allclose(again[index].keys, snapshot.layers[index].keys, atol=1e-5)
        assert torch.equal(again[index].values, snapshot.layers[index].values)


def test_groups_are_of_one_kind_and_bounded(snapshot: KVSnapshot) -> None:

    kinds = ("full_attention", "full_attention", "sliding_attention")
    assert group_layers(kinds, [LayerShape(2, 16, 16)] * 3) == ((0, 1), (2,))
    assert group_layers(kinds, [LayerShape(32, 64, 64)] * 3) == ((0,), (1,), (2,))


def test_too_few_sessions_are_refused(model: object) -> None:
    with pytest.raises(InputError, match="too few"):
        fit_codec(model, None, random_sessions(2, 64), FitSettings(), lambda stage, done, total: None)


def test_the_same_sessions_give_the_same_codec(model: object, codec: TinyVAECodec) -> None:
    settings = FitSettings(rank=48, prior_rank=16, prior_taps=2, fisher_sessions=4, continuation_tokens=32)
    again, kept_out = fit_codec(model, None, random_sessions(12, 128), settings, lambda stage, done, total: None)
    assert again.fingerprint == codec.fingerprint
    assert len(kept_out) == 3


def test_sliding_window_models_are_coded_in_groups_of_their_own() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        max_position_embeddings=256,
    )
    sliding = Gemma3ForCausalLM(config).eval()
    settings = FitSettings(rank=24, prior_rank=8, prior_taps=2, fisher_sessions=2, continuation_tokens=16)
    codec, _ = fit_codec(sliding, None, random_sessions(8, 96), settings, lambda stage, done, total: None)
    snapshot = capture(sliding, random_sessions(1, 70, seed=2)[0])
    decoded, plain = codec.decode(codec.encode(snapshot, 150)), codec.reconstruct(snapshot, 150)
    assert codec.groups == [(0, 1), (2,)]
    for ours, theirs, exact in zip(decoded.layers, plain.layers, snapshot.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.positions, exact.positions)
