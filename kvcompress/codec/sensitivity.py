"""The influence of each token on the model's output, in units of a codec's latents."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hf.channels import group_positions, rows_of
from kvcompress.hf.gradients import cache_gradients
from kvcompress.hf.rope import rope_of
from kvcompress.hf.types import CausalLM
from kvcompress.snapshot import KVSnapshot


def token_importance(
    model: CausalLM,
    codec: TinyVAECodec,
    snapshot: KVSnapshot,
    continuation: Tensor,
    generator: torch.Generator,
    draws: int,
) -> list[tuple[Tensor, Tensor]]:
    """Return for each group the positions [T] and what a unit of squared error in each token's latents costs, [T].

    The squared gradient of sampled log-likelihoods with respect to a token's latents, summed over these and averaged
    over draws: the diagonal of the Fisher matrix, token by token.
    """
    totals: dict[int, Tensor] = {}
    rope = rope_of(snapshot.origin)
    for _ in range(draws):
        gradients = cache_gradients(model, snapshot, continuation, rope, generator)
        for group, layers in enumerate(codec.groups):
            rows = torch.cat([rows_of(t) for i in layers for t in gradients[i]], 1)
            energy = (rows @ codec.vae(group).transform.synthesis.dense.T).square().sum(1) / draws
            totals[group] = totals.get(group, 0.0) + energy
    return [(group_positions(snapshot, layers), totals[group]) for group, layers in enumerate(codec.groups)]
