"""Rotary embeddings whose frequencies depend on how long the session is.

| rope type | frequencies | what `generate` does |
| --- | --- | --- |
| dynamic | grow with the longest position, beyond the context too | goes on; what is cached keeps the angles it has |
| longrope | a short and a long set, by the original context | some families prefill again where a session crosses it |

A session goes on here as it does there. transformers keeps the longest position that a model object has ever seen as
its state, so that a session would depend on those before it: that state is taken back before every call and after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache

from kvcompress.hf.types import CausalLM

ORIGINAL = "original_max_position_embeddings"

_GROWING: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()
_RESTARTS: WeakKeyDictionary[Any, tuple[int | None]] = WeakKeyDictionary()


def rope_types(config: Any) -> set[str]:
    """Return the rope types of a configuration, of all kinds of layers; empty where nothing rotates."""
    rope: Any = getattr(config, "rope_parameters", None)
    if not isinstance(rope, Mapping):
        return set()
    parts = [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, Mapping)]
    return {str(part.get("rope_type", "default")) for part in parts}


def is_steady(rope_type: str) -> bool:
    """Return whether frequencies of this rope type are the same at every length."""
    return "dynamic" not in rope_type and rope_type != "longrope"


def has_steady_rope(model: CausalLM, tokens: int) -> bool:
    """Return whether every layer's frequencies are the same at all lengths up to `tokens`."""
    config = _decoder(model)
    if all(map(is_steady, rope_types(config))):
        return True
    lengths = original_lengths(config) if not grows(model) else []
    return tokens <= min([*lengths, getattr(config, "max_position_embeddings", None) or 0])


def grows(model: CausalLM) -> bool:
    """Return whether the model stretches its frequencies to sessions of any length."""
    return any("dynamic" in name for name in rope_types(_decoder(model)))


def forget_length(model: CausalLM) -> None:
    """Take frequencies that grew with an earlier session back to those of the configuration, in place."""
    known = _GROWING.get(model)
    if known is None:
        known = tuple(module for module in model.modules() if _is_growing(module)) if grows(model) else ()
        _GROWING[model] = known
    for rotary in known:
        for name in [name for name, _ in rotary.named_buffers(recurse=False) if name.endswith("original_inv_freq")]:
            prefix, original = name.removesuffix("original_inv_freq"), getattr(rotary, name)
            live = getattr(rotary, f"{prefix}inv_freq")
            if not torch.equal(live, original.to(live.device)):
                rotary.register_buffer(f"{prefix}inv_freq", original.to(live.device, copy=True), persistent=False)
            for longest in {"max_seq_len_cached", f"{prefix}max_seq_len_cached"} & vars(rotary).keys():
                setattr(rotary, longest, rotary.original_max_seq_len)


def restart_length(model: CausalLM) -> int | None:
    """Return the length L at which `generate` drops a cache of at most L tokens once the session is longer, else None.

    The model is asked, by the function that prepares each step of `generate`; some families of longrope do so where the
    short frequencies give way to the long ones.
    """
    known = _RESTARTS.get(model)
    if known is None:
        known = (_asked_restart(model),)
        _RESTARTS[model] = known
    return known[0]


def _asked_restart(model: CausalLM) -> int | None:
    config = _decoder(model)
    if "longrope" not in rope_types(config) or not hasattr(model, "prepare_inputs_for_generation"):
        return None
    return next((length for length in original_lengths(config) if _drops_its_cache(model, length)), None)


def original_lengths(config: Any) -> list[int]:
    """Return every original context that a configuration names, for all or some layers, the shortest first."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    parts = (rope, *(part for part in rope.values() if isinstance(part, Mapping)))
    stated = [getattr(config, ORIGINAL, None), *(part.get(ORIGINAL) for part in parts)]
    return sorted({length for length in stated if isinstance(length, int) and length > 0})


def _drops_its_cache(model: Any, length: int) -> bool:
    """Ask the model whether it goes on without its cache of `length` tokens when one more comes."""
    from kvcompress.hf.call import cache_name

    name, held = cache_name(model), DynamicCache()
    held.update(torch.zeros(1, 1, length, 1, dtype=torch.float32), torch.zeros(1, 1, length, 1, dtype=torch.float32), 0)
    ids = torch.zeros(1, length + 1, dtype=torch.int64)
    # The names of several versions of transformers: what one does not know it takes for an argument of its forward.
    steps = {"cache_position": torch.tensor([length]), "next_sequence_length": 1}
    prepared = model.prepare_inputs_for_generation(
        ids, **{name: held}, **steps, attention_mask=torch.ones_like(ids), use_cache=True
    )
    return prepared.get(name) is None


def _is_growing(module: nn.Module) -> bool:
    kinds: Any = getattr(module, "rope_type", None)
    names = kinds.values() if isinstance(kinds, Mapping) else [kinds]
    return any("dynamic" in str(name) for name in names)


def _decoder(model: CausalLM) -> Any:
    return model.config.get_text_config(decoder=True)
