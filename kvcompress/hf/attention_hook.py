"""Observer: run a model and read its queries and attention probabilities, layer by layer.

The observer is a second handle of the model: the same weights, with an attention that computes its probabilities in the
open (the family's own eager form) and shows them before they are forgotten. The model itself stays as it was.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from kvcompress.errors import InputError
from kvcompress.hf.forward import open_mask, run
from kvcompress.hf.types import Cache, CausalLM

OBSERVED = "kvcompress_observed"
EAGER = "eager_attention_forward"


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What one layer does with one run of queries.

    Attributes:
        layer: Index of the layer.
        queries: [Hq, T, D] as they meet the keys, RoPE applied.
        probabilities: [Hq, T, K]; the last of the K keys is the last query's own.
        scaling: What products of queries and keys are multiplied by.
    """

    layer: int
    queries: Tensor
    probabilities: Tensor
    scaling: float


See = Callable[[Sight], None]
_SEEING: ContextVar[See | None] = ContextVar("kvcompress_seeing", default=None)


def _observed(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """Attend as the module's family does, and show what is seen."""
    output, probabilities = getattr(sys.modules[type(module).__module__], EAGER)(
        module, query, key, value, mask, **options
    )
    see = _SEEING.get()
    if see is not None:
        scaling = options.get("scaling")
        see(Sight(int(module.layer_idx), query[0], probabilities[0], float(scaling or query.shape[-1] ** -0.5)))
    return output, probabilities


AttentionInterface.register(OBSERVED, _observed)
AttentionMaskInterface.register(OBSERVED, eager_mask)


class Observer:
    """Second handle of a model, with open attention.

    Args:
        model: A supported model in evaluation mode.

    Raises:
        InputError: The family does not show its attention.
    """

    def __init__(self, model: CausalLM) -> None:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        families = {type(m).__module__ for m in model.modules() if type(m).__name__.endswith("Attention")}
        if not all(hasattr(sys.modules[name], EAGER) for name in families):
            raise unseen(model)
        try:
            self.model.set_attn_implementation(OBSERVED)
        except (AttributeError, ValueError) as error:
            raise unseen(model) from error

    @torch.no_grad()
    def run(
        self, token_ids: Tensor, first_position: int, cache: Cache, see: See | None, *, logits: bool = False
    ) -> Any:
        """Feed tokens [T] int64 at positions from `first_position` on behind a cache, which is advanced in place.

        Args:
            token_ids: [T] int64.
            first_position: Position of the first of them.
            cache: The model's cache.
            see: Called once a layer, or None.
            logits: Return the logits [T, V] of all tokens instead of None.

        Raises:
            InputError: A layer did not show its attention.
        """
        seen: set[int] = set()

        def note(sight: Sight) -> None:
            seen.add(sight.layer)
            if see is not None:
                see(sight)

        ids, positions = token_ids[None], torch.arange(first_position, first_position + len(token_ids))[None]
        mask, token = open_mask(cache, ids), _SEEING.set(note)
        try:
            found = run(self.model, ids, cache, position_ids=positions, attention_mask=mask, last_only=not logits)
        finally:
            _SEEING.reset(token)
        if len(seen) != len(cache.layers):
            raise unseen(self.model)
        return found[0] if logits else None


def unseen(model: CausalLM) -> InputError:
    """Return the error of a model whose attention cannot be observed."""
    what = f"model type {model.config.model_type!r} does not show the attention probabilities of every layer"
    return InputError(what, "Use another scorer, or a family that supports attn_implementation='eager'")
