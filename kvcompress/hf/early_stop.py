"""Run a model's first layers only: a cache that ends the forward pass once a layer has handed over its keys and values.

The model itself is called, so masks, positions and kernels are those of a prefill and the results are the same bits.
Nothing is hooked into it, and others may use it meanwhile.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache

from kvcompress.hf.call import call
from kvcompress.hf.types import CausalLM


class _Reached(Exception):
    """The last layer that is needed has handed over its keys and values."""


class EarlyStopCache(DynamicCache):
    """A cache that forgets nothing and ends the forward pass once a layer is updated.

    Args:
        last: Index of that layer.
    """

    def __init__(self, last: int) -> None:
        super().__init__()  # without a configuration no layer forgets, however small its window
        self.last = last

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Take keys and values over, as any cache does."""
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.last:
            raise _Reached
        return found


def run_first_layers(model: CausalLM, input_ids: Tensor, cache: EarlyStopCache, **options: Any) -> bool:
    """Run a model over tokens [B, T] until the cache ends the call; return whether it did.

    Args:
        model: A causal language model.
        input_ids: [B, T] int64.
        cache: Advanced in place, layers 0 to its last.
        options: Further arguments of `kvcompress.hf.call.call`.
    """
    try:
        call(model, input_ids, cache, ends_early=True, **options)
    except _Reached:
        return True
    return False
