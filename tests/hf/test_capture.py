"""capture takes what it can use, copies it, and refuses the rest in one line."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache, T5Config, T5ForConditionalGeneration

from kvcompress.errors import InputError
from kvcompress.hf import capture
from kvcompress.snapshot import Origin
from tests.hf.families import CONTEXT, REFUSED, VOCABULARY, build, model_of, session


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_layout_is_refused(name: str) -> None:
    config, reason = REFUSED[name]
    model = AutoModelForCausalLM.from_config(config()).eval()
    with pytest.raises(InputError, match=reason) as caught:
        capture(model, session(4))
    assert "Supported are decoder-only models" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="encoder-decoder"):
        capture(T5ForConditionalGeneration(config).eval(), session(4))


def test_static_cache_is_refused() -> None:
    model, ids = model_of("llama"), session(4)
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=cache)
    with pytest.raises(InputError, match="layer 0 of the cache is a StaticLayer"):
        capture(model, ids, cache=cache)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_too_long_session_names_both_numbers(name: str) -> None:
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens .* {CONTEXT}"):
        capture(model_of(name), session(CONTEXT + 1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_session_may_fill_the_context(name: str) -> None:
    assert capture(model_of(name), session(CONTEXT)).tokens == CONTEXT


@pytest.mark.parametrize("wrong", [VOCABULARY, -1, 2**40])
def test_token_outside_vocabulary_is_refused(wrong: int) -> None:
    with pytest.raises(InputError, match=f"token {wrong} is outside the vocabulary of {VOCABULARY}"):
        capture(model_of("llama"), [1, wrong])


@pytest.mark.parametrize("wrong", [[0.5], ["a"], [True], torch.ones(1, 3, dtype=torch.int64), [2**70], [None], 3])
def test_tokens_of_wrong_kind_are_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="token_ids"):
        capture(model_of("llama"), wrong)


def test_list_and_tensors_of_any_integer_kind_are_equal() -> None:
    ids = session(6)
    expected = capture(model_of("llama"), ids)
    for other in (ids.tolist(), ids.int(), tuple(ids.tolist())):
        assert torch.equal(capture(model_of("llama"), other).layers[1].keys, expected.layers[1].keys)


def test_training_mode_is_refused() -> None:
    model = build(model_of("gpt2").config).train()
    with pytest.raises(InputError, match="training mode"):
        capture(model, session(4))


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("name", ["llama", "mistral_window", "opt"])
def test_chunked_prefill_agrees(name: str, chunk: int) -> None:
    model, ids = model_of(name), session(23)
    for whole, parts in zip(capture(model, ids).layers, capture(model, ids, chunk_tokens=chunk).layers, strict=True):
        assert torch.equal(whole.positions, parts.positions)
        torch.testing.assert_close(parts.keys, whole.keys, rtol=1e-4, atol=1e-4)


def test_chunk_of_no_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="chunk_tokens"):
        capture(model_of("llama"), session(3), chunk_tokens=0)


def test_given_cache_is_read_and_not_changed() -> None:
    model, ids = model_of("llama"), session(9)
    cache = DynamicCache(config=model.config)
    generated = model.generate(ids[None], past_key_values=cache, max_new_tokens=4, do_sample=False)[0]
    snapshot = capture(model, generated[:-1], cache=cache)
    assert snapshot.tokens == 12
    for kv, layer in zip(snapshot.layers, cache.layers, strict=True):
        assert torch.equal(kv.keys, layer.keys[0])
        assert kv.keys.data_ptr() != layer.keys.data_ptr()
    with pytest.raises(InputError, match="covers 12 tokens but 13 were given"):
        capture(model, generated, cache=cache)


def test_batch_is_refused() -> None:
    model, ids = model_of("llama"), session(5)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.stack([ids, ids]), past_key_values=cache)
    with pytest.raises(InputError, match="batch of 2"):
        capture(model, ids, cache=cache)


def test_cache_of_other_depth_or_kind_is_refused() -> None:
    model, ids = model_of("mistral"), session(5)
    sliding = DynamicCache(config=model_of("mistral_window").config)
    with torch.inference_mode():
        model_of("mistral_window")(input_ids=ids[None], past_key_values=sliding)
    with pytest.raises(InputError, match="sliding window"):
        capture(model, ids, cache=sliding)
    with pytest.raises(InputError, match="0 layers"):
        capture(model, ids, cache=DynamicCache())


@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_snapshot_owns_plain_memory(name: str) -> None:
    model, ids = model_of(name), session(30)
    snapshot = capture(model, ids)
    tensors = [tensor for kv in snapshot.layers for tensor in (kv.keys, kv.values)]
    for tensor in tensors:
        assert tensor.device.type == "cpu"
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert not tensor.is_inference()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    ids.zero_()
    assert int(snapshot.token_ids.min()) > 0


def test_not_finite_cache_is_refused() -> None:
    model = build(model_of("llama").config)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        capture(model, [3, 7])


def test_origin_survives_json() -> None:
    snapshot = capture(model_of("gemma3"), session(5))
    origin = Origin.from_json(json.loads(json.dumps(snapshot.origin.to_json())))
    assert origin == snapshot.origin
    assert "_name_or_path" not in origin.config


def test_what_a_tokenizer_returns_is_no_list_of_tokens() -> None:
    with pytest.raises(InputError, match=r'mapping.*\["input_ids"\]'):
        capture(model_of("llama"), {"input_ids": [1, 2]})  # type: ignore[arg-type]


def test_a_compiled_model_is_refused_and_one_compiled_in_place_is_taken() -> None:
    model = copy.deepcopy(model_of("llama"))
    with pytest.raises(InputError, match=r"torch\.compile.*model\.compile\(\)"):
        capture(torch.compile(model), [1, 2, 3])
    model.compile(backend="eager")
    assert capture(model, [1, 2, 3]).tokens == 3
