"""A tiny random model and a codec fitted to it: real, small and quick."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvcompress.codec.promise import Loss, Promise, Setting
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.fit.fitter import fit_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.hf import capture
from kvcompress.snapshot import KVSnapshot

VOCAB = 96


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.1)
    return model


def random_sessions(count: int, tokens: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (tokens,), generator=generator) for _ in range(count)]


def promised(qps: dict[str, int | None]) -> dict[str, Promise]:
    """Promises as calibration gives them: latents at a QP, or int8 without one."""
    loss = Loss(0.02, 0.01, 0)
    settings = {name: Setting("int8") if qp is None else Setting("latents", qp) for name, qp in qps.items()}
    return {name: Promise(name, setting, 20, 128, 64, loss, loss, loss) for name, setting in settings.items()}


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return tiny_model()


@pytest.fixture(scope="session")
def codec(model: LlamaForCausalLM) -> TinyVAECodec:
    settings = FitSettings(rank=48, prior_rank=16, prior_taps=2, fisher_sessions=4, continuation_tokens=32)
    fitted, _ = fit_codec(model, None, random_sessions(12, 128), settings, lambda stage, done, total: None)
    fitted.promises = promised({"transparent": 120, "high": 90, "usable": 60, "fallback": None})
    return fitted


@pytest.fixture(scope="session")
def snapshot(model: LlamaForCausalLM) -> KVSnapshot:
    return capture(model, random_sessions(1, 80, seed=9)[0])
