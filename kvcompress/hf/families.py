"""The supported cache layouts, and which layers of a model apply RoPE to their keys.

Accepted is what the cache shows, not a list of names: every layer must be a plain `DynamicLayer` or
`DynamicSlidingWindowLayer`. Families whose cache looks plain but means something else are refused by configuration.
"""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvcompress.errors import InputError
from kvcompress.hf.call import call
from kvcompress.hf.fingerprint import rope_digest, rotates_as_configured
from kvcompress.hf.positions import position_rule
from kvcompress.hf.rope import ROTATION_NAME, RopeAdapter, rope_from_config, rotatable_layers, turns_one
from kvcompress.hf.rope_length import grows
from kvcompress.hf.session_cache import SessionCache
from kvcompress.hf.types import Cache, CausalLM, require_a_model

SUPPORTED = "Supported are decoder-only models that cache plain keys and values, with full or sliding-window attention"
KIND_OF_LAYER: dict[type, str] = {DynamicLayer: "full_attention", DynamicSlidingWindowLayer: "sliding_attention"}
PROBE_TOKENS = 16
PROBE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of the largest key
UNNAMED_CONTEXT_TOKENS = 4096

_PROBED: WeakKeyDictionary[Any, tuple[str, tuple[bool, ...]]] = WeakKeyDictionary()
_SHAPES: WeakKeyDictionary[Any, tuple[tuple[int, int, int], ...]] = WeakKeyDictionary()
_SPYING = threading.Lock()


def new_cache(model: CausalLM) -> SessionCache:
    """Return an empty cache of the model's own layout.

    Raises:
        InputError: The model's family or one of its layers is not supported; the message names the kind.
    """
    require_a_model(model)
    _refuse_family(model)
    try:
        cache = SessionCache(config=_decoder_config(model))
    except Exception as error:  # configurations without attention lack what the cache reads, each in its own way
        raise InputError(f"model type {model.config.model_type!r} has no key-value cache", SUPPORTED) from error
    if not cache.layers:
        raise InputError(f"model type {model.config.model_type!r} has no attention layers", SUPPORTED)
    layer_kinds(cache)
    return cache


def _decoder_config(model: CausalLM) -> Any:
    """Return the configuration whose layers the decoder has: BART and its kin count the encoder's as their own."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "decoder_layers"):
        return config
    config = copy.deepcopy(config)
    config.is_encoder_decoder = True  # only then transformers looks for the decoder's own numbers
    return config


def layer_kinds(cache: Cache) -> tuple[str, ...]:
    """Return the kind of each layer as in `snapshot.LAYER_KINDS`, raising `InputError` on any other kind of cache."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise InputError(f"a cache of type {type(cache).__name__} cannot be used", SUPPORTED)
    for index, layer in enumerate(layers):
        if type(layer) not in KIND_OF_LAYER:
            raise InputError(f"layer {index} of the cache is a {type(layer).__name__}", SUPPORTED)
    return tuple(KIND_OF_LAYER[type(layer)] for layer in layers)


def configured_context(model: CausalLM) -> int | None:
    """Return the number of positions that a model's configuration names, None where it names none or sets no end.

    Dynamic RoPE stretches to any length.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if not isinstance(limit, int) or limit <= 0 or grows(model) else limit


def context_tokens(model: CausalLM) -> int | None:
    """Return the longest session the model can take, None where its configuration does not say or sets no end.

    Positions that begin behind a padding index leave fewer for tokens.
    """
    limit = configured_context(model)
    return None if limit is None else limit - position_rule(model).offset


def vocabulary_tokens(model: CausalLM) -> int:
    """Return the number of token ids that the model can embed."""
    table: Any = model.get_input_embeddings().weight
    return int(table.shape[0])


def cache_shapes(model: CausalLM) -> tuple[tuple[int, int, int], ...]:
    """Return heads, size of keys and size of values of each layer; found out by one token and kept with the model."""
    known = _SHAPES.get(model)
    if known is None:
        cache: Cache = new_cache(model)
        with torch.no_grad():
            call(model, torch.zeros(1, 1, dtype=torch.int64), cache, last_only=True)
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        known = tuple((keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in pairs)
        _SHAPES[model] = known
    return known


def _refuse_family(model: CausalLM) -> None:
    """Raise `InputError` for caches that look plain but are not."""
    config = model.config.get_text_config(decoder=True)
    attention = getattr(config, "attn_config", None)
    if getattr(model.config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif config.model_type == "bloom" or getattr(config, "alibi", False) or getattr(attention, "alibi", False):
        kind = "attention with ALiBi biases, which know no positions"
    elif getattr(config, "kv_lora_rank", None):
        kind = "multi-head latent attention, whose cache holds latents"
    else:
        return
    raise InputError(f"model type {config.model_type!r} uses {kind}", SUPPORTED)


def rotating_layers(model: CausalLM, config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Find out by a short run which layers cache keys that `RopeAdapter.undo` takes back to the truth.

    Some families leave RoPE out in some layers, which a cache does not show. The result is kept with the model.

    Args:
        model: A supported model.
        config: Its configuration as in `Origin.config`; the adapter under test knows nothing else.
    """
    stamp, known = rope_digest(model), _PROBED.get(model)
    if known is not None and known[0] == stamp:
        return known[1]
    layers = len(new_cache(model).layers)
    wanted = rotatable_layers(config, layers) if rotates_as_configured(model) else (False,) * layers
    found = _probe(model, rope_from_config(config, wanted)) if any(wanted) else wanted
    _PROBED[model] = (stamp, found)
    return found


def _probe(model: CausalLM, adapter: RopeAdapter) -> tuple[bool, ...]:
    """Run a few tokens at the far end of the context, where wrong frequencies show most."""
    context = configured_context(model) or UNNAMED_CONTEXT_TOKENS
    count = min(PROBE_TOKENS, context)
    positions = torch.arange(context - count, context)
    ids = torch.arange(count) % vocabulary_tokens(model)
    cache: Cache = DynamicCache()  # without a configuration no layer forgets, however small its window
    with _spied(_attention_modules(model)) as calls, torch.inference_mode():
        call(model, ids[None], cache, position_ids=positions[None])
    return tuple(
        wanted and _explained(adapter, layer, cache.layers[layer].keys, positions, calls)
        for layer, wanted in enumerate(adapter.rope_layers)
    )


def _explained(
    adapter: RopeAdapter, layer: int, cached: Tensor, positions: Tensor, calls: list[tuple[Tensor, Tensor]]
) -> bool:
    """Return whether some spied rotation made these keys and `undo` finds what it was given.

    Args:
        adapter: Knows every rotatable layer as rotating.
        layer: Index of the layer.
        cached: [1, H, T, D] keys in the cache.
        positions: [T] int64.
        calls: Keys before and after each rotation, [1, H, T, R] with R <= D; some families turn them as [1, T, H, R].
    """
    for before, after in calls:
        width = after.shape[-1]
        if after.ndim != 4 or after.shape[:3] != cached.shape[:3] or not torch.equal(after, cached[..., :width]):
            continue
        truth = torch.cat([before, cached[..., width:]], dim=-1)[0].float().cpu()
        try:
            undone = adapter.undo(layer, cached[0].cpu(), positions)
        except InputError:
            return False
        tolerance = PROBE_TOLERANCE.get(cached.dtype, 0.0) * float(truth.abs().max())
        return bool((undone - truth).abs().max() <= tolerance)
    return False


def _attention_modules(model: CausalLM) -> list[ModuleType]:
    """Return the Python modules whose rotation the model's attention layers call."""
    names = {type(module).__module__ for module in model.modules() if type(module).__name__.endswith("Attention")}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules[name], ROTATION_NAME)]


@contextmanager
def _spied(modules: list[ModuleType]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the keys before and after each rotation; the functions are put back whatever happens."""
    calls: list[tuple[Tensor, Tensor]] = []

    def spy_on(original: Any) -> Any:
        names = list(inspect.signature(original).parameters)
        own = 0 if turns_one(original) else 1  # which argument is the keys

        def spy(*args: Any, **kwargs: Any) -> Any:
            rotated = original(*args, **kwargs)
            given = args[own] if len(args) > own else kwargs.get(names[own])
            turned = rotated[own] if isinstance(rotated, tuple) else rotated
            if isinstance(given, Tensor) and isinstance(turned, Tensor) and given.shape == turned.shape:
                calls.extend([(given, turned), (given.transpose(1, 2), turned.transpose(1, 2))])
            return rotated

        return spy

    with _SPYING:
        originals = [(module, getattr(module, ROTATION_NAME)) for module in modules]
        try:
            for module, original in originals:
                setattr(module, ROTATION_NAME, spy_on(original))
            yield calls
        finally:
            for module, original in originals:
                setattr(module, ROTATION_NAME, original)
