"""Tiny random models in float64, so that equal means equal and no greedy choice hangs on rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 61
CONTEXT = 256
WINDOW = 16
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
}


def build(family: str) -> Any:
    """Return a llama (RoPE), a gpt2 (learned positions), a mistral (sliding) or a qwen2 (one layer of each)."""
    torch.manual_seed(0)
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    elif family == "qwen2":
        kinds = ["full_attention", "sliding_attention"]
        model = Qwen2ForCausalLM(
            Qwen2Config(**SHAPE, layer_types=kinds, use_sliding_window=True, sliding_window=WINDOW)
        )
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW))
    else:
        sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
        ends = {"bos_token_id": None, "eos_token_id": None}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.4))
    return model.double().eval()


def tokens(count: int, seed: int = 1) -> Tensor:
    """Return `count` random token ids."""
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def prefill(model: Any, token_ids: Tensor) -> DynamicCache:
    """Return the exact cache of a session."""
    cache = DynamicCache(config=model.config)
    if token_ids.numel():
        model(token_ids[None], past_key_values=cache, use_cache=True)
    return cache


@torch.no_grad()
def whole_logits(model: Any, token_ids: Tensor) -> Tensor:
    """Return [N, V] of one pass over everything, without any cache."""
    logits: Tensor = model(token_ids[None], use_cache=False).logits[0]
    return logits


def greedy(model: Any, token_ids: Tensor, count: int) -> list[int]:
    """Return what the uninterrupted model generates."""
    ids = token_ids[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, token_ids.numel() :].tolist()


def keep(cache: DynamicCache, kept: list[Tensor]) -> DynamicCache:
    """Keep only the given positions of each layer, in place."""
    for layer, positions in zip(cache.layers, kept, strict=True):
        layer.keys, layer.values = layer.keys[:, :, positions], layer.values[:, :, positions]
    return cache
