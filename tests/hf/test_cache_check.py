"""A cache that is not the model's of the tokens given with it is refused; one that is, is taken, whoever made it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, Qwen2Config

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed, generate_from, resume_start
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.hf.families import ACCEPTED, GROUPED, WINDOW, build, model_of, session

TOKENS, PADS = 20, 5
TRIED = ["llama", "gpt2", "opt", "qwen3", "gemma3", "mistral_window", "phi3"]


def run_over(model: Any, ids: Tensor, cache: DynamicCache | None = None, **options: Any) -> DynamicCache:
    cache = cache or DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=cache, **options)
    return cache


def left_padded(ids: Tensor) -> tuple[Tensor, Tensor]:
    padded = torch.cat([torch.zeros(PADS, dtype=torch.int64), ids])
    return padded, (torch.arange(len(padded)) >= PADS).long()[None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TRIED)
def test_a_row_padded_on_the_left_is_refused(name: str, dtype: str) -> None:
    model = model_of(name, dtype)
    padded, mask = left_padded(session(TOKENS))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = run_over(model, padded, attention_mask=mask)
    moved = run_over(model, padded, attention_mask=mask, position_ids=positions)
    for cache in (hidden, moved):
        with pytest.raises(InputError, match=r"the cache is not .* padded row") as caught:
            capture(model, padded, cache=cache)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hidden", [30, 34, 36, 38])
@pytest.mark.parametrize("kinds", ["ss", "fs", "sf", "fss"])
def test_a_token_hidden_in_a_session_longer_than_its_windows_is_found(kinds: str, hidden: int) -> None:
    names = {"s": "sliding_attention", "f": "full_attention"}
    shape = {**GROUPED, "num_hidden_layers": len(kinds), "layer_types": [names[kind] for kind in kinds]}
    model = build(Qwen2Config(**shape, use_sliding_window=True, sliding_window=WINDOW))
    ids, mask = session(40), torch.ones(1, 40, dtype=torch.int64)
    assert capture(model, ids, cache=run_over(model, ids)).tokens == 40
    for masked in (slice(hidden, hidden + 1), slice(hidden, None)):
        mask[:, masked] = 0
        with pytest.raises(InputError, match="the cache is not"):
            capture(model, ids, cache=run_over(model, ids, attention_mask=mask))


def test_a_cache_in_another_kind_of_number_is_refused_before_the_model_meets_it() -> None:
    model, ids = model_of("llama"), session(TOKENS)
    cache: Any = run_over(model, ids)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.double(), layer.values.double()
    with pytest.raises(InputError, match=r"a cache of torch.float64 cannot be used"):
        capture(model, ids, cache=cache)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_generation_on_a_padded_prompt_is_refused(name: str, side: str) -> None:
    model, (padded, mask) = model_of(name), left_padded(session(TOKENS))
    if side == "right":
        padded, mask = padded.roll(-PADS), mask.roll(-PADS, 1)
    cache = DynamicCache(config=model.config)
    options = {"max_new_tokens": 4, "do_sample": False}
    out = model.generate(padded[None], attention_mask=mask, past_key_values=cache, **options)[0]
    with pytest.raises(InputError, match="the cache is not"):
        capture(model, out[:-1], cache=cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("place", [0, 7, TOKENS - 1])
def test_one_other_token_is_refused(name: str, dtype: str, place: int) -> None:
    model, ids = model_of(name, dtype), session(TOKENS)
    other = ids.clone()
    other[place] = 3 + (other[place] - 2) % 90
    cache = run_over(model, ids)
    assert capture(model, ids, cache=cache).tokens == TOKENS
    with pytest.raises(InputError, match="the cache is not"):
        capture(model, other, cache=cache)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TRIED)
def test_a_cache_filled_step_by_step_is_taken(name: str, dtype: str) -> None:
    model, ids = model_of(name, dtype), session(60)
    cache = run_over(model, ids[:40])
    for token in ids[40:]:
        run_over(model, token[None], cache)
    assert capture(model, ids, cache=cache).tokens == 60


def test_the_cache_of_assisted_decoding_is_taken() -> None:
    model, helper, ids = model_of("llama"), build(ACCEPTED["llama"](), seed=3), session(TOKENS)
    cache = DynamicCache(config=model.config)
    out = model.generate(ids[None], assistant_model=helper, past_key_values=cache, max_new_tokens=9, do_sample=False)[0]
    snapshot = capture(model, out[: cache.get_seq_length()], cache=cache)
    more = session(4, seed=2)
    fresh = capture(model, snapshot.token_ids)
    exact, found = (feed(model, restore(kept, model), more, snapshot.tokens) for kept in (fresh, snapshot))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_one_row_of_a_batch_is_taken_as_the_message_says() -> None:
    model, rows = model_of("llama"), torch.stack([session(TOKENS), session(TOKENS, seed=2)])
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=rows, past_key_values=cache)
    with pytest.raises(InputError, match=r"cache\.batch_select_indices"):
        capture(model, rows[1], cache=cache)
    cache.batch_select_indices(torch.tensor([1]))
    assert capture(model, rows[1], cache=cache).tokens == TOKENS


def test_the_given_cache_is_not_changed() -> None:
    model, ids = model_of("gemma3"), session(TOKENS)
    cache = run_over(model, ids)
    before = copy.deepcopy(cache)
    capture(model, ids, cache=cache)
    for found, kept in zip(cache.layers, before.layers, strict=True):
        assert torch.equal(found.keys, kept.keys)
        assert torch.equal(found.values, kept.values)
        assert found.get_seq_length() == kept.get_seq_length()


def pruned(snapshot: KVSnapshot, *dropped: set[int]) -> KVSnapshot:
    layers = []
    for kv, places in zip(snapshot.layers, dropped, strict=True):
        keep = torch.tensor([place for place in range(snapshot.tokens) if place not in places])
        layers.append(LayerKV(kv.keys[:, keep], kv.values[:, keep], kv.positions[keep]))
    return dataclasses.replace(snapshot, layers=tuple(layers))


@pytest.mark.parametrize("dropped", [({3, 7}, {3, 7}), ({3, 7}, {1, 2, 5}), ({TOKENS - 1}, {4})])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_session_resumed_from_a_pruned_file_is_captured_with_the_positions_it_has(
    name: str, dropped: tuple[set[int], set[int]]
) -> None:
    model, ids, more = model_of(name), session(TOKENS), session(6, seed=2)
    snapshot = pruned(capture(model, ids), *dropped)
    cache = restore(snapshot, model)
    feed(model, cache, more, TOKENS)
    whole = torch.cat([ids, more])
    again = capture(model, whole, cache=cache)
    for kv, places in zip(again.layers, dropped, strict=True):
        assert kv.positions.tolist() == [place for place in range(len(whole)) if place not in places]
    last = session(3, seed=4)
    assert torch.equal(feed(model, restore(again, model), last, 26), feed(model, cache, last, 26))


@pytest.mark.parametrize("dropped", [({3, 7}, {3, 7}), ({TOKENS - 1}, {4})])
def test_a_pruned_session_that_went_on_without_a_prompt_is_captured(dropped: tuple[set[int], set[int]]) -> None:
    model, ids = model_of("llama"), session(TOKENS)
    snapshot = pruned(capture(model, ids), *dropped)
    cache = restore(snapshot, model)
    pending, position = resume_start(cache, ids, layer_positions=[kv.positions for kv in snapshot.layers])
    new = generate_from(model, cache, pending, next_position=position, max_new_tokens=6)
    again = capture(model, [*ids.tolist(), *new[:-1]], cache=cache)
    assert again.tokens == TOKENS + 5
    assert 4 in again.layers[0].positions.tolist()


def test_other_tokens_than_the_restored_ones_are_refused() -> None:
    model, ids = model_of("llama"), session(TOKENS)
    cache = restore(pruned(capture(model, ids), {3}, {3}), model)
    feed(model, cache, session(2, seed=2), TOKENS)
    other = torch.cat([ids.roll(1), session(2, seed=2)])
    with pytest.raises(InputError, match="restored from a snapshot of other tokens"):
        capture(model, other, cache=cache)


def test_a_cache_of_another_data_type_is_compared_in_the_model_s() -> None:
    model, half, ids = model_of("llama"), model_of("llama", "bfloat16"), session(TOKENS)
    assert capture(half, ids, cache=run_over(model, ids)).tokens == TOKENS
    with pytest.raises(InputError, match="the cache is not"):
        capture(half, ids, cache=run_over(build(ACCEPTED["llama"](), seed=3), ids))


def test_weights_that_differ_in_a_later_layer_alone_are_found() -> None:
    model, ids = build(LlamaConfig(**{**GROUPED, "num_hidden_layers": 6})), session(TOKENS)
    for layer in range(6):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.model.layers[layer].self_attn.k_proj.weight.mul_(1.02)
        with pytest.raises(InputError, match="the cache is not"):
            capture(model, ids, cache=run_over(other, ids))
