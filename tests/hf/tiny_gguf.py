"""A very small GGUF file: a llama of two layers with a tokenizer of single bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.hf.families import build

HEADS, KV_HEADS, LAYERS, WIDTH = 4, 2, 2, 128
WORDS = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), "ab"]
PLACES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """Return the model whose weights go into the file."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rms_norm_eps=2.0**-20,
    )
    model: Any = build(config, seed=seed)
    return model


def write_gguf(
    path: Path, model: LlamaForCausalLM, *, architecture: str = "llama", quantised: bool = False, tokens: bool = True
) -> Path:
    """Write a model as llama.cpp's converter would; matrices as Q8_0 with `quantised`, else all as F32."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("Some Training Run 8k")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(2.0**-20)
    writer.add_vocab_size(len(WORDS))
    if tokens:
        _write_tokenizer(writer)
    for name, tensor in _tensors(model).items():
        if quantised and tensor.ndim > 1:
            packed = quantize(tensor, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for layer in range(LAYERS):
        for short, place in PLACES.items():
            weight = state[f"model.layers.{layer}.{place}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(short)
            found[f"blk.{layer}.{short}.weight"] = weight if heads is None else _interleaved(weight, heads)
    return found


def _interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Put pairs of rotated channels side by side, as GGUF files of llama models have them."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def some_ids() -> torch.Tensor:
    """Return [1, 40] int64 token ids."""
    return torch.arange(40)[None] * 5 % len(WORDS)
