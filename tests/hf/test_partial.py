"""The first layers alone give the same bits as a whole prefill, and the model does not notice."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import DynamicCache

from kvcompress.errors import InputError, MismatchError
from kvcompress.hf import capture, first_layers, recompute_with
from tests.hf.families import ACCEPTED, CONTEXT, REFUSED, VOCABULARY, build, model_of, session

TOKENS = 24  # longer than the window


def whole(model: torch.nn.Module, ids: torch.Tensor) -> DynamicCache:
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_first_layers_are_bitwise_those_of_a_prefill(name: str, dtype: str) -> None:
    model, ids = model_of(name, dtype), session(TOKENS)
    expected, found = whole(model, ids), first_layers(model, ids, 1)
    assert len(found) == 2
    for ours, theirs in zip(found, expected.layers[:2], strict=True):
        assert torch.equal(ours.keys, theirs.keys[0])
        assert torch.equal(ours.values, theirs.values[0])
        assert torch.equal(ours.positions, torch.arange(TOKENS))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_deeper_layers_are_never_run(name: str) -> None:
    model = build(ACCEPTED[name](), seed=3)
    ids, ran = session(TOKENS), list[torch.nn.Module]()
    attention = [module for module in model.modules() if type(module).__name__.endswith("MLP")]
    for module in attention:
        module.register_forward_hook(lambda module, *_: ran.append(module))
    first_layers(model, ids, 1)
    assert ran == attention[:1]


def test_the_model_serves_others_meanwhile() -> None:
    model, ids = model_of("llama"), session(TOKENS)
    expected = whole(model, ids).layers[1].values
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: first_layers(model, ids, 1)) for _ in range(2)]
    threads += [threading.Thread(target=lambda: found.append(whole(model, ids).layers[1].values)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(values, expected) for values in found)


def test_chunks_agree_up_to_rounding() -> None:
    model, ids = model_of("mistral_window"), session(TOKENS)
    for ours, theirs in zip(first_layers(model, ids, 1, chunk_tokens=7), first_layers(model, ids, 1), strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=1e-5 * float(theirs.keys.abs().max()))
        torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=1e-5 * float(theirs.values.abs().max()))


def test_an_empty_session_has_empty_layers() -> None:
    layers = first_layers(model_of("llama"), session(0), 1)
    assert [layer.keys.shape for layer in layers] == [
        layer.keys.shape for layer in capture(model_of("llama"), []).layers
    ]


@pytest.mark.parametrize("layers", [0, 2, -1])
def test_layers_that_the_model_does_not_have_are_refused(layers: int) -> None:
    with pytest.raises(InputError, match="Ask for 1 to 1"):
        first_layers(model_of("llama"), session(4), layers)


@pytest.mark.parametrize(
    ("ids", "told"), [(session(CONTEXT + 1), "context ends"), (torch.tensor([VOCABULARY]), "outside")]
)
def test_tokens_that_the_model_cannot_take_are_refused(ids: torch.Tensor, told: str) -> None:
    with pytest.raises(InputError, match=told):
        first_layers(model_of("gpt2"), ids, 1)


@pytest.mark.parametrize("name", REFUSED)
def test_families_without_a_plain_cache_are_refused(name: str) -> None:
    config, told = REFUSED[name]
    with pytest.raises(InputError, match=told):
        first_layers(build(config()), session(4), 1)


def test_a_model_that_bypasses_its_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(ACCEPTED["llama"](), seed=4)
    original = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, past_key_values=None, **rest: original(self, **rest), raising=True
    )
    with pytest.raises(InputError, match="layer by layer"):
        first_layers(model, session(4), 1)


def test_another_model_recomputes_nothing() -> None:
    origin = capture(model_of("llama"), session(4)).origin
    with pytest.raises(MismatchError, match="weights"):
        recompute_with(build(ACCEPTED["llama"](), seed=5))(session(4), 1, origin)


def test_recomputed_layers_have_the_data_type_of_the_session() -> None:
    origin = capture(model_of("llama", "bfloat16"), session(4)).origin
    layers = recompute_with(model_of("llama"))(session(4), 1, origin)
    assert {layer.keys.dtype for layer in layers} == {torch.bfloat16}
