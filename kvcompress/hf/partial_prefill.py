"""Run only the first layers of a model over token ids, for their keys and values.

```
token ids ──► embedding ──► layer 0 ──► .. ──► layer m-1 ──► layer m: norm, keys, values ──► cache ──► stop
```
The model itself is called, with a cache that ends the call as soon as layer m has handed over its keys and values. So
masks, positions and kernels are those of a prefill, the results are the same bits, and the model is left as it was:
nothing is hooked into it, and others may use it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.capture import check_ids
from kvcompress.hf.early_stop import EarlyStopCache, run_first_layers
from kvcompress.hf.families import new_cache
from kvcompress.hf.origin_check import require_model
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import CACHE_DTYPES, LayerKV, Origin

Recompute = Callable[[Tensor, int, Origin], Sequence[LayerKV]]
"""Called with token ids [N] int64, m and the session's origin; returns layers 0 to m at every position."""

REMEDY = "Use --recompute-layers 0"


def first_layers(
    model: CausalLM, token_ids: Tensor, layers: int, *, chunk_tokens: int | None = None
) -> tuple[LayerKV, ...]:
    """Run the first `layers` layers and return keys and values of these and of the next, at every position.

    Args:
        model: A supported model in evaluation mode.
        token_ids: [N] int64; may be empty.
        layers: m, at least 1 and less than the model has.
        chunk_tokens: Run in steps of this many tokens to save memory.

    Returns:
        m + 1 layers on the CPU in the model's data type, sliding windows not applied.

    Raises:
        InputError: The model is not supported or in training mode, has not so many layers, does not hand over
            keys and values layer by layer, or cannot take the tokens.
    """
    count, token_ids = len(new_cache(model).layers), check_ids(model, token_ids)
    if not 1 <= layers < count:
        raise InputError(f"{layers} of {count} layers cannot be run alone", f"Ask for 1 to {count - 1}")
    if model.training:
        raise InputError("the model is in training mode", "Call model.eval() first")
    ids = token_ids if token_ids.numel() else torch.zeros(1, dtype=torch.int64)  # a stand-in tells the shapes
    cache: Any = EarlyStopCache(layers)
    with torch.inference_mode():
        for chunk in torch.split(ids, chunk_tokens or ids.numel()):
            if not run_first_layers(model, chunk[None], cache):
                raise _refusal(model)
    tokens = token_ids.numel()
    if len(cache.layers) != layers + 1 or any(layer.keys.shape[2] != ids.numel() for layer in cache.layers):
        raise _refusal(model)
    return tuple(_layer(slot, tokens) for slot in cache.layers)


def _refusal(model: CausalLM) -> InputError:
    kind = model.config.model_type
    return InputError(f"model type {kind!r} does not hand over its keys and values layer by layer", REMEDY)


def _layer(slot: Any, tokens: int) -> LayerKV:
    """Copy a cache layer to the CPU, outside inference_mode so that training code may use it."""
    keys, values = slot.keys[0, :, :tokens], slot.values[0, :, :tokens]
    with torch.inference_mode(False):
        own = [torch.empty(part.shape, dtype=part.dtype).copy_(part.detach()) for part in (keys, values)]
    return LayerKV(own[0], own[1], torch.arange(tokens))


@dataclass(frozen=True, slots=True)
class Recomputing:
    """What a codec asks for the layers that it does not code: this model's, and no other's. A `Recompute`.

    Attributes:
        model: The model that recorded the session, in evaluation mode.
        tokenizer: Compared with the recording one if both are known.
    """

    model: CausalLM
    tokenizer: Tokenizer | None = None

    def __call__(self, token_ids: Tensor, layers: int, origin: Origin) -> tuple[LayerKV, ...]:
        """Return layers 0 to m of a session; raises as `first_layers`, and `MismatchError` for another model's."""
        require_model(origin, self.model, self.tokenizer)
        target = CACHE_DTYPES[origin.dtype]
        return tuple(
            LayerKV(layer.keys.to(target), layer.values.to(target), layer.positions)
            for layer in first_layers(self.model, token_ids, layers)
        )


def recompute_with(model: CausalLM, tokenizer: Tokenizer | None = None) -> Recomputing:
    """Return what a codec asks for the layers that it does not code, see `Recomputing`."""
    return Recomputing(model, tokenizer)
