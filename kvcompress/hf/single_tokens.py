"""Single tokens of a model: their embeddings, and the cache entry of each at position 0.

Nothing stands before a first token, so its cache is a function of the token alone. Many models make it an attention
sink (Xiao et al., arXiv 2309.17453): its activations are far from those of any other place (Sun et al., 2402.17762).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.hf.families import new_cache
from kvcompress.hf.forward import run
from kvcompress.hf.types import Cache, CausalLM
from kvcompress.snapshot import LayerKV

BATCH_TOKENS = 128


def embeddings_of(model: CausalLM) -> Tensor:
    """Return the model's token embeddings [V, E], detached, on the CPU."""
    table: Tensor = model.get_input_embeddings().weight.detach().cpu()
    return table


@torch.inference_mode()
def first_token_caches(model: CausalLM, token_ids: Tensor) -> list[LayerKV]:
    """Return the keys and values that each token has at place 0 with nothing before it.

    Args:
        model: A supported model in evaluation mode.
        token_ids: [n] int64.

    Returns:
        For each layer keys [H, n, D] and values [H, n, Dv] in the model's data type; every position is 0.
    """
    parts: list[list[tuple[Tensor, Tensor]]] = []
    for chunk in torch.split(token_ids, BATCH_TOKENS):
        cache: Cache = new_cache(model)
        run(model, chunk[:, None], cache, last_only=True)
        parts.append([(slot.keys[:, :, 0].cpu(), slot.values[:, :, 0].cpu()) for slot in cache.layers])
    zeros = torch.zeros(len(token_ids), dtype=torch.int64)
    layers = []
    for index in range(len(parts[0])):
        keys, values = (torch.cat([part[index][side] for part in parts]).transpose(0, 1) for side in (0, 1))
        layers.append(LayerKV(keys.contiguous(), values.contiguous(), zeros))
    return layers
