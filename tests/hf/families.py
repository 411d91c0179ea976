"""Small random models of every accepted family, and of some that must be refused."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 97
CONTEXT = 128
WINDOW = 16
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
OPT = {**SPECIAL, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

ROTATING: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "llama3": lambda: hf.LlamaConfig(**GROUPED, rope_parameters=dict(LLAMA3)),
    "yarn": lambda: hf.LlamaConfig(**GROUPED, rope_parameters=dict(YARN)),
    "linear": lambda: hf.LlamaConfig(**GROUPED, rope_parameters=dict(LINEAR)),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=None),
    "mistral_window": lambda: hf.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**BASE),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "phi3_partial": lambda: hf.Phi3Config(**GROUPED, rope_parameters=dict(HALF)),
    "phi": lambda: hf.PhiConfig(**BASE),
    "cohere": lambda: hf.CohereConfig(**GROUPED),
    "glm": lambda: hf.GlmConfig(**GROUPED, head_dim=16),
    "gpt_oss": lambda: hf.GptOssConfig(
        **GROUPED, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GROUPED, head_dim=16, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
}
UNROTATED: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: hf.GPT2Config(**SPECIAL, **GPT2),
    "opt": lambda: hf.OPTConfig(**OPT, max_position_embeddings=CONTEXT, word_embed_proj_dim=32),
    "dynamic": lambda: hf.LlamaConfig(**GROUPED, rope_parameters=dict(DYNAMIC)),
}
ACCEPTED = ROTATING | UNROTATED
CORE = ("llama", "llama3", "yarn", "qwen2", "qwen3", "mistral", "mistral_window", "gpt_neox", "phi3", "gpt2", "opt")
LINEAR_ATTENTION = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
REFUSED: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "bloom": (lambda: hf.BloomConfig(**SPECIAL, hidden_size=32, n_layer=2, n_head=4), "ALiBi"),
    "falcon_alibi": (lambda: hf.FalconConfig(**BASE, alibi=True), "ALiBi"),
    "mamba": (
        lambda: hf.MambaConfig(**SPECIAL, hidden_size=32, num_hidden_layers=2),
        "layer 0 .* LinearAttentionLayer",
    ),
    "qwen3_next": (lambda: hf.Qwen3NextConfig(**GROUPED, head_dim=16, **LINEAR_ATTENTION), "LinearAttentionLayer"),
    "deepseek_v3": (lambda: hf.DeepseekV3Config(**BASE, **LATENT), "latent"),
}


@functools.lru_cache(maxsize=64)
def model_of(name: str, dtype: str = "float32") -> PreTrainedModel:
    """Build a model once; tests must leave it as they found it."""
    return build(ACCEPTED[name](), dtype)


def build(config: PreTrainedConfig, dtype: str = "float32", seed: int = 0) -> PreTrainedModel:
    """Build a model with weights large enough for positions and window to matter, all exact in bfloat16."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_((0.25 * torch.randn(parameter.shape)).bfloat16())
            else:
                parameter.copy_(parameter.bfloat16())
    model.generation_config.eos_token_id = None
    return model


def session(tokens: int, seed: int = 1) -> torch.Tensor:
    """Return [tokens] int64 random token ids."""
    return torch.randint(3, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed))
