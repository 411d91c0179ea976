"""The influence of each cache entry on the model's output: gradients of sampled log-likelihoods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcompress.hf.channels import Rope
from kvcompress.hf.forward import run
from kvcompress.hf.types import CausalLM
from kvcompress.snapshot import KVSnapshot


def cache_gradients(
    model: CausalLM, snapshot: KVSnapshot, continuation: Tensor, rope: Rope, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Return, for each layer, the gradient with respect to pre-RoPE keys and values, [H, T, D] float32.

    The log-likelihood is that of tokens drawn from the model's own predictions along the
    continuation, so the mean outer product of these gradients is the Fisher information of the
    cache (as in natural-gradient learning), not the empirical one of the recorded tokens.

    Args:
        model: A causal language model in float32.
        snapshot: Cache of the tokens before the continuation.
        continuation: [M] int64 tokens fed after the snapshot.
        rope: Rotation of the snapshot's keys. Up to a constant it is orthogonal, so its inverse maps gradients
            too; the constant (of yarn) only weighs keys a little against values.
        generator: Source of the sampled tokens.
    """
    cache = DynamicCache(config=model.config)
    leaves = []
    for index, layer in enumerate(snapshot.layers):
        keys, values = (t.float()[None].clone().requires_grad_() for t in (layer.keys, layer.values))
        leaves += [keys, values]
        cache.update(keys, values, index)
        slot: Any = cache.layers[index]
        if hasattr(slot, "cumulative_length"):
            slot.cumulative_length = snapshot.tokens
    start = snapshot.origin.next_position
    positions = torch.arange(start, start + len(continuation))[None]
    logits = run(model, continuation[None], cache, position_ids=positions)[0]
    log_probabilities = logits.float().log_softmax(-1)
    drawn = torch.multinomial(log_probabilities.detach().exp(), 1, generator=generator)
    gradients = torch.autograd.grad(log_probabilities.gather(1, drawn).sum(), leaves, allow_unused=True)
    found = [torch.zeros_like(leaf[0]) if g is None else g[0] for leaf, g in zip(leaves, gradients, strict=True)]
    pairs = zip(found[0::2], found[1::2], strict=True)
    return [
        (rope.undo(index, keys, snapshot.layers[index].positions), values) for index, (keys, values) in enumerate(pairs)
    ]
