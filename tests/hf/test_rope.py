"""undo gives the keys before RoPE, redo gives the cached keys back, and no weights are needed for either."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, SmolLM3Config

from kvcompress.errors import InputError
from kvcompress.hf import capture, rope_from_config
from kvcompress.hf.rope import RopeAdapter
from tests.hf.families import CONTEXT, GROUPED, ROTATING, UNROTATED, build, model_of, session


def spied_keys(model: PreTrainedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer the rotated part of the keys before RoPE, and the whole keys in the cache, [H, T, *]."""
    module, before = sys.modules[type(model).__module__], []
    original = module.apply_rotary_pos_emb

    def spy(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        before.append(k[0].clone())
        return original(q, k, cos, sin)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module, "apply_rotary_pos_emb", spy)
        cache = DynamicCache()
        model(input_ids=ids[None], past_key_values=cache)
    return [(keys, layer.keys[0]) for keys, layer in zip(before, cache.layers, strict=True)]


@pytest.mark.parametrize("name", ROTATING)
def test_undo_gives_the_true_keys_before_rope(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of(name), session(CONTEXT)
    snapshot = capture(model, ids)
    assert snapshot.origin.rope_layers == (True, True)
    adapter, positions = rope_from_config(snapshot.origin.config, (True, True)), torch.arange(CONTEXT)
    for layer, (before, cached) in enumerate(spied_keys(model, ids, monkeypatch)):
        undone, width = adapter.undo(layer, cached, positions), before.shape[-1]
        assert undone.dtype == torch.float32
        scale = float(before.abs().max())
        torch.testing.assert_close(undone[..., :width], before, rtol=0, atol=1e-5 * max(scale, 1.0))
        assert torch.equal(undone[..., width:], cached[..., width:])
        assert (undone - cached).abs().max() > 0.1 * scale, "nothing was rotated: the test is empty"
        torch.testing.assert_close(adapter.redo(layer, undone, positions), cached, rtol=0, atol=1e-5 * max(scale, 1.0))


@pytest.mark.parametrize("name", ROTATING)
def test_redo_of_undo_is_bit_exact_in_bfloat16_up_to_cancellation(name: str) -> None:
    """A value thousands of times smaller than its partner may move by one rounding step; every other comes back."""
    snapshot = capture(model_of(name, "bfloat16"), session(40))
    assert snapshot.origin.rope_layers == (True, True)
    adapter = rope_from_config(snapshot.origin.config, snapshot.origin.rope_layers)
    for layer, kv in enumerate(snapshot.layers):
        again = adapter.redo(layer, adapter.undo(layer, kv.keys, kv.positions), kv.positions)
        exact, moved = kv.keys.float(), again.bfloat16() != kv.keys
        scale = exact.abs().amax(-1, keepdim=True).expand_as(exact)
        assert ((again - exact).abs() <= 1e-6 * scale).all()
        assert (exact.abs()[moved] < 1e-3 * scale[moved]).all()
        assert moved.sum() <= 2


@pytest.mark.parametrize("name", ROTATING)
def test_config_alone_gives_the_live_models_rotation(name: str) -> None:
    model = model_of(name)
    snapshot = capture(model, session(40))
    rotary = next(m for n, m in model.named_modules() if n.endswith("rotary_emb"))
    rotation = sys.modules[type(model).__module__].apply_rotary_pos_emb
    types = tuple(getattr(model.config, "layer_types", None) or (None, None))
    live = RopeAdapter(rotary, rotation, types, (True, True))
    rebuilt = rope_from_config(json.loads(json.dumps(snapshot.origin.config)), (True, True))
    for layer, kv in enumerate(snapshot.layers):
        expected = live.undo(layer, kv.keys, kv.positions)
        assert torch.equal(rebuilt.undo(layer, kv.keys, kv.positions), expected)
        assert torch.equal(rebuilt.redo(layer, expected, kv.positions), live.redo(layer, expected, kv.positions))


def test_undo_looks_at_positions_and_not_at_order() -> None:
    snapshot = capture(model_of("llama"), session(40))
    adapter, kv = rope_from_config(snapshot.origin.config, (True, True)), snapshot.layers[0]
    keep = torch.tensor([0, 7, 8, 31])
    expected = adapter.undo(0, kv.keys, kv.positions)[:, keep]
    torch.testing.assert_close(adapter.undo(0, kv.keys[:, keep], keep), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", UNROTATED)
def test_layers_that_cannot_be_undone_pass_through(name: str) -> None:
    snapshot = capture(model_of(name, "bfloat16"), session(20))
    assert snapshot.origin.rope_layers == (False, False)
    adapter, kv = rope_from_config(snapshot.origin.config, (False, False)), snapshot.layers[1]
    assert torch.equal(adapter.undo(1, kv.keys, kv.positions), kv.keys.float())
    assert torch.equal(adapter.redo(1, kv.keys, kv.positions), kv.keys.float())
    with pytest.raises(InputError, match=r"depends on the length|no rotary embedding"):
        rope_from_config(snapshot.origin.config, (True, True))


def test_layers_without_rope_are_found() -> None:
    config = SmolLM3Config(**{**GROUPED, "num_hidden_layers": 4})
    assert capture(build(config), session(8)).origin.rope_layers == (True, True, True, False)


def test_rounded_frequencies_are_found() -> None:
    """A model cast as a whole rotates with rounded frequencies; undoing with the true ones would be wrong."""
    model = build(ROTATING["llama"]()).to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert capture(model, session(8)).origin.rope_layers == (False, False)


def test_probe_puts_the_rotation_back() -> None:
    model = build(ROTATING["llama"]())
    module = sys.modules[type(model).__module__]
    before = module.apply_rotary_pos_emb
    capture(model, session(3))
    assert module.apply_rotary_pos_emb is before

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    broken = build(ROTATING["llama"]())
    broken.lm_head.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        capture(broken, session(3))
    assert module.apply_rotary_pos_emb is before


def test_keys_keep_their_gradient_even_after_inference_mode() -> None:
    config = capture(model_of("yarn"), session(3)).origin.config
    adapter, positions = rope_from_config(config, (True, True)), torch.arange(50, 60)
    with torch.inference_mode():
        adapter.redo(0, torch.randn(2, 10, 8), positions)
    keys = torch.randn(2, 10, 8, requires_grad=True)
    adapter.redo(0, keys, positions).square().sum().backward()
    assert torch.isfinite(keys.grad).all()


@pytest.mark.parametrize(
    ("damage", "harmless"),
    [
        ({"model_type": "no_such_type"}, False),
        ({"model_type": None}, False),
        ({"model_type": ["llama"]}, False),
        ({"head_dim": 10**12}, False),
        ({"head_dim": "many"}, False),
        ({"head_dim": -8}, False),
        ({"head_dim": 7}, False),
        ({"num_attention_heads": 0, "head_dim": None}, False),
        ({"rope_parameters": {"rope_type": "no_such_rope"}}, False),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, False),
        ({"rope_parameters": 3}, False),
        ({"hidden_size": -4, "head_dim": None}, False),
        ({"hidden_size": 10**12, "num_hidden_layers": 10**12}, True),
    ],
)
def test_damaged_config_gives_one_line(damage: dict[str, object], harmless: bool) -> None:
    config = dict(capture(model_of("llama"), session(3)).origin.config) | damage
    if harmless:
        turn(config)
    else:
        with pytest.raises(InputError) as caught:
            turn(config)
        assert "\n" not in str(caught.value)


def turn(config: dict[str, object]) -> Tensor:
    return rope_from_config(config, (True, True)).undo(0, torch.randn(2, 3, 8), torch.arange(3))


def test_keys_that_do_not_fit_are_refused() -> None:
    adapter = rope_from_config(capture(model_of("llama"), session(3)).origin.config, (True, True))
    for keys, positions in ((torch.randn(2, 3, 6), torch.arange(3)), (torch.randn(2, 3, 8), torch.arange(4))):
        with pytest.raises(InputError):
            adapter.undo(0, keys, positions)
    with pytest.raises(InputError, match="layer 2"):
        adapter.undo(2, torch.randn(2, 3, 8), torch.arange(3))


def test_angles_are_shared_between_layers() -> None:
    """Layers with equal positions cost one evaluation of the rotary embedding, whatever tensor objects they come in."""
    config = capture(model_of("llama"), session(3)).origin.config
    adapter = rope_from_config(config, (True,) * 12)
    calls: list[int] = []
    adapter._rotary.register_forward_hook(lambda *_: calls.append(1))
    for layer in range(12):
        adapter.redo(layer, torch.randn(2, 30, 8), torch.arange(70, 100))
    assert len(calls) == 2  # the angles, and the scaling at position zero


def test_redo_is_fast() -> None:
    config = dict(capture(model_of("llama"), session(3)).origin.config) | {"head_dim": 32}
    adapter, keys, positions = rope_from_config(config, (True,) * 6), torch.randn(4, 2048, 32), torch.arange(2048)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for layer in range(6):
            adapter.redo(layer, keys, positions)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # a few milliseconds on a free core; wide for a busy one
