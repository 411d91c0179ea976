"""A restored cache goes on exactly as the untouched one would have."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from transformers import DynamicCache

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.families import new_cache
from kvcompress.snapshot import LayerKV
from tests.hf.families import ACCEPTED, CORE, WINDOW, model_of, session

TOKENS = 24  # longer than the window


def prefilled(model: torch.nn.Module, ids: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return cache


def continued(model: torch.nn.Module, cache: DynamicCache, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids[None], past_key_values=cache).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_restored_logits_are_bitwise_equal(name: str, dtype: str) -> None:
    model, ids = model_of(name, dtype), session(TOKENS)
    untouched = prefilled(model, ids)
    snapshot = capture(model, ids)
    assert snapshot.origin.dtype == dtype
    for more in (session(1, seed=2), session(5, seed=3)):
        expected = continued(model, copy.deepcopy(untouched), more)
        assert torch.equal(continued(model, restore(snapshot, model), more), expected)


@pytest.mark.parametrize("name", CORE)
def test_a_cache_that_takes_the_snapshots_memory_goes_on_alike_and_leaves_it_alone(name: str) -> None:
    model, ids, more = model_of(name), session(TOKENS), session(5, seed=3)
    snapshot = capture(model, ids)
    before = [(kv.keys.clone(), kv.values.clone()) for kv in snapshot.layers]
    cache = restore(snapshot, model, copy=False)
    for layer, kv in zip(cache.layers, snapshot.layers, strict=True):
        assert layer.keys.data_ptr() == kv.keys.data_ptr()
        assert layer.values.data_ptr() == kv.values.data_ptr()
    assert torch.equal(continued(model, cache, more), continued(model, restore(snapshot, model), more))
    for kv, (keys, values) in zip(snapshot.layers, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


@pytest.mark.parametrize("name", CORE)
def test_greedy_generation_equals_uninterrupted_run(name: str) -> None:
    model, ids = model_of(name), session(TOKENS + 1)
    snapshot = capture(model, ids[:TOKENS])
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)[None]}
    expected = model.generate(ids[None], **options)
    assert torch.equal(model.generate(ids[None], past_key_values=restore(snapshot, model), **options), expected)


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_generation_leaves_the_snapshot_alone(name: str) -> None:
    model, ids = model_of(name), session(TOKENS)
    snapshot = capture(model, ids)
    before = [(kv.keys.clone(), kv.values.clone()) for kv in snapshot.layers]
    cache = restore(snapshot, model)
    for layer in cache.layers:
        layer.keys.zero_()
        layer.values.zero_()
    for kv, (keys, values) in zip(snapshot.layers, before, strict=True):
        assert torch.equal(kv.keys, keys)
        assert torch.equal(kv.values, values)


@pytest.mark.parametrize("tokens", [WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, 4 * WINDOW])
def test_sliding_window_keeps_true_positions(tokens: int) -> None:
    model, ids = model_of("mistral_window"), session(tokens)
    snapshot = capture(model, ids)
    kept = min(tokens, WINDOW - 1)
    assert snapshot.origin.layer_kinds == ("sliding_attention",) * 2
    assert snapshot.origin.next_position == tokens
    for kv in snapshot.layers:
        assert kv.positions.tolist() == list(range(tokens - kept, tokens))
    more = session(3, seed=2)
    assert torch.equal(continued(model, restore(snapshot, model), more), continued(model, prefilled(model, ids), more))


def test_full_cache_of_sliding_model_is_cut_to_its_window() -> None:
    model, ids = model_of("mistral_window"), session(TOKENS)
    everything = DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=everything)
    snapshot, expected = capture(model, ids, cache=everything), capture(model, ids)
    for found, wanted in zip(snapshot.layers, expected.layers, strict=True):
        assert torch.equal(found.keys, wanted.keys)
        assert torch.equal(found.positions, wanted.positions)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window"])
def test_empty_session_resumes_like_a_fresh_model(name: str) -> None:
    model = model_of(name)
    snapshot = capture(model, [])
    shapes = {(kv.keys.shape, kv.values.shape) for kv in snapshot.layers}
    heads, size = capture(model, [5]).layers[0].keys.shape[::2]
    assert shapes == {((heads, 0, size), (heads, 0, size))}
    assert snapshot.tokens == snapshot.origin.next_position == 0
    more = session(4)
    assert torch.equal(continued(model, restore(snapshot, model), more), continued(model, new_cache(model), more))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma3"])
def test_one_token_session_resumes(name: str) -> None:
    model, ids, more = model_of(name), session(1), session(3, seed=2)
    snapshot = capture(model, ids)
    assert snapshot.tokens == 1
    assert torch.equal(continued(model, restore(snapshot, model), more), continued(model, prefilled(model, ids), more))


@pytest.mark.parametrize("name", ["llama", "yarn", "gpt_neox", "gpt2", "opt"])
def test_dropped_tokens_are_as_if_masked(name: str) -> None:
    model, ids, more = model_of(name), session(TOKENS), session(1, seed=2)
    snapshot, keep, place = capture(model, ids), torch.tensor([0, 1, 2, 9, 15, TOKENS - 1]), torch.tensor([[TOKENS]])
    layers = tuple(LayerKV(kv.keys[:, keep], kv.values[:, keep], kv.positions[keep]) for kv in snapshot.layers)
    cache = restore(dataclasses.replace(snapshot, layers=layers), model)
    assert cache.get_seq_length() == len(keep)
    mask = torch.zeros(1, TOKENS + 1, dtype=torch.int64)
    mask[0, keep] = mask[0, -1] = 1
    with torch.inference_mode():
        full = restore(snapshot, model)
        expected = model(input_ids=more[None], past_key_values=full, attention_mask=mask, position_ids=place).logits
        found = model(input_ids=more[None], past_key_values=cache, position_ids=place).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_pruned_sliding_layer_is_refused() -> None:
    model = model_of("mistral_window")
    snapshot = capture(model, session(WINDOW - 1))
    short = tuple(LayerKV(kv.keys[:, 2:], kv.values[:, 2:], kv.positions[2:]) for kv in snapshot.layers)
    with pytest.raises(InputError, match="layer 0 holds 13 of the 15 tokens in its sliding window"):
        restore(dataclasses.replace(snapshot, layers=short), model)


def test_restore_converts_to_the_models_dtype() -> None:
    snapshot = capture(model_of("llama"), session(5))
    cache = restore(snapshot, model_of("llama", "bfloat16"))
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}
    assert torch.equal(cache.layers[0].keys[0], snapshot.layers[0].keys.bfloat16())


def test_other_number_or_kind_of_layers_is_refused() -> None:
    snapshot = capture(model_of("mistral_window"), session(5))
    with pytest.raises(InputError, match="number or kind"):
        restore(snapshot, model_of("mistral"), check_fingerprint=False)
