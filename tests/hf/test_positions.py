"""A session goes on at the positions that its model counts by itself, or is refused where it would count wrong."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.families import context_tokens
from kvcompress.hf.generation import feed
from kvcompress.hf.positions import position_rule
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.hf.families import BASE, GROUPED, SPECIAL, VOCABULARY, build, model_of, session

TOKENS = 24
DECODER = {**SPECIAL, "d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_attention_heads": 4}
DECODER |= {"encoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "max_position_embeddings": 128}
ENCODER = {**BASE, "is_decoder": True, "type_vocab_size": 1}
GEMMA3N = {
    **GROUPED,
    "head_dim": 8,
    "num_kv_shared_layers": 0,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "intermediate_size": [48, 48],
    "activation_sparsity_pattern": [0.0, 0.0],
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
}
BEHIND_PADDING: dict[str, Callable[[], PreTrainedConfig]] = {
    "roberta": lambda: hf.RobertaConfig(**ENCODER),
    "xlm_roberta": lambda: hf.XLMRobertaConfig(**ENCODER),
    "camembert": lambda: hf.CamembertConfig(**ENCODER),
    "data2vec": lambda: hf.Data2VecTextConfig(**ENCODER),
    "roberta_prelayernorm": lambda: hf.RobertaPreLayerNormConfig(**ENCODER),
    "roberta_pad_5": lambda: hf.RobertaConfig(**{**ENCODER, "pad_token_id": 5}),
}
COUNTING: dict[str, Callable[[], PreTrainedConfig]] = {
    "bart": lambda: hf.BartConfig(**DECODER),
    "mbart": lambda: hf.MBartConfig(**DECODER),
    "pegasus": lambda: hf.PegasusConfig(**DECODER),
    "marian": lambda: hf.MarianConfig(**DECODER, decoder_start_token_id=1),
    "blenderbot": lambda: hf.BlenderbotConfig(**DECODER),
    "trocr": lambda: hf.TrOCRConfig(**{name: DECODER[name] for name in DECODER if not name.startswith("encoder")}),
    "roformer": lambda: hf.RoFormerConfig(**ENCODER),
}
TOLD: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: hf.BertConfig(**ENCODER),
    "electra": lambda: hf.ElectraConfig(**ENCODER, embedding_size=32),
    "xglm": lambda: hf.XGLMConfig(
        **SPECIAL, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=128
    ),
    "biogpt": lambda: hf.BioGptConfig(**BASE),
    "gptj": lambda: hf.GPTJConfig(**SPECIAL, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=8),
    "falcon": lambda: hf.FalconConfig(**BASE),
    "stablelm": lambda: hf.StableLmConfig(**GROUPED),
    "gemma3n": lambda: hf.Gemma3nTextConfig(**GEMMA3N),
}
FAMILIES = BEHIND_PADDING | COUNTING | TOLD
_BUILT: dict[str, PreTrainedModel] = {}


def model_named(name: str) -> PreTrainedModel:
    if name not in _BUILT:
        _BUILT[name] = build(FAMILIES[name]())
    return _BUILT[name]


def without(snapshot: KVSnapshot, dropped: set[int]) -> KVSnapshot:
    keep = torch.tensor([place for place in range(snapshot.tokens) if place not in dropped])
    layers = tuple(LayerKV(kv.keys[:, keep], kv.values[:, keep], kv.positions[keep]) for kv in snapshot.layers)
    return dataclasses.replace(snapshot, layers=layers)


def uninterrupted(model: Any, ids: Tensor, more: Tensor) -> Tensor:
    cache = copy.deepcopy(restore(capture(model, []), model))  # the model's own layout, empty
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        logits: Tensor = model(input_ids=more[None], past_key_values=cache, use_cache=True).logits[0]
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_restored_session_is_bit_equal_to_the_uninterrupted_run(name: str) -> None:
    model, ids, more = model_named(name), session(TOKENS), session(5, seed=2)
    if not hf.DynamicCache(config=model.config).layers:
        pytest.skip("this version of transformers makes no cache for the family")
    assert torch.equal(feed(model, restore(capture(model, ids), model), more, TOKENS), uninterrupted(model, ids, more))


@pytest.mark.parametrize("name", FAMILIES)
def test_how_a_family_counts_is_found_out(name: str) -> None:
    rule, pad = position_rule(model_named(name)), model_named(name).config.pad_token_id
    assert rule.stated == (name not in COUNTING)
    assert rule.offset == (pad + 1 if name in BEHIND_PADDING else 0)


@pytest.mark.parametrize("name", COUNTING)
def test_a_family_that_counts_its_cache_is_not_restored_with_tokens_missing(name: str) -> None:
    model = model_named(name)
    with pytest.raises(InputError, match="counts positions by the entries of its cache") as caught:
        restore(without(capture(model, session(TOKENS)), {3, 7}), model)
    assert "\n" not in str(caught.value)


def test_a_family_that_counts_a_window_by_its_cache_is_not_restored_with_tokens_missing() -> None:
    shape = {**SPECIAL, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128}
    kinds: list[list[object]] = [[["global", "local"], 1]]
    model = build(hf.GPTNeoConfig(**shape, attention_types=kinds, window_size=16))
    snapshot = capture(model, session(TOKENS))
    assert restore(snapshot, model).get_seq_length() == TOKENS
    with pytest.raises(InputError, match="counts the window of its local attention by the entries of its cache"):
        restore(without(snapshot, {3, 7}), model)
    unbounded = build(hf.GPTNeoConfig(**shape, attention_types=[[["global"], 2]]))
    assert restore(without(capture(unbounded, session(TOKENS)), {3, 7}), unbounded).get_seq_length() == TOKENS - 2


@pytest.mark.parametrize("name", ["roberta", "roberta_pad_5", "bert", "xglm"])
def test_a_pruned_session_goes_on_as_if_what_was_dropped_were_masked(name: str) -> None:
    model, ids, more, dropped = model_named(name), session(TOKENS), session(5, seed=2), {3, 7, 12}
    snapshot = capture(model, ids)
    found = feed(model, restore(without(snapshot, dropped), model), more, TOKENS)
    mask = torch.ones(1, TOKENS + 5, dtype=torch.int64)
    mask[0, sorted(dropped)] = 0
    place = torch.arange(TOKENS, TOKENS + 5)[None] + position_rule(model).offset
    with torch.inference_mode():
        cache = restore(snapshot, model)
        exact = model(input_ids=more[None], past_key_values=cache, attention_mask=mask, position_ids=place).logits[0]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_positions_behind_the_padding_index_leave_less_context() -> None:
    model = model_named("roberta_pad_5")
    assert context_tokens(model) == 128 - 6
    assert capture(model, session(122)).tokens == 122
    with pytest.raises(InputError, match=r"123 tokens .* 122"):
        capture(model, session(123))


def test_finding_out_how_a_model_counts_leaves_it_as_it_was() -> None:
    model = build(model_of("llama").config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    position_rule(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
