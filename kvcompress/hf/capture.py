"""capture: run a model over a session, or take a cache that covers it, and return a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcompress.errors import InputError
from kvcompress.format.default_device import on_cpu
from kvcompress.hf.cache_check import require_own_tokens
from kvcompress.hf.families import (
    SUPPORTED,
    configured_context,
    context_tokens,
    layer_kinds,
    new_cache,
    rotating_layers,
    vocabulary_tokens,
)
from kvcompress.hf.fingerprint import config_json, fingerprint
from kvcompress.hf.forward import run
from kvcompress.hf.rope import rope_from_config
from kvcompress.hf.rope_length import has_steady_rope
from kvcompress.hf.session_cache import SessionCache
from kvcompress.hf.types import Cache, CausalLM, Tokenizer
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV, Origin

ROUND_TRIP_TOLERANCE = 1e-5  # of the largest key of the token and head


@on_cpu
def capture(
    model: CausalLM,
    token_ids: Tensor | Sequence[int],
    *,
    tokenizer: Tokenizer | None = None,
    cache: Cache | None = None,
    chunk_tokens: int | None = None,
) -> KVSnapshot:
    """Record the key-value cache of one session.

    Args:
        model: A model in evaluation mode.
        token_ids: [N] int64, or a list; may be empty.
        tokenizer: Enters the fingerprint if given.
        cache: A cache that already covers exactly these tokens; without it the model is run. It is read, never changed,
            and found out to be the model's of these tokens, see `kvcompress.hf.cache_check`. One that was restored from
            a pruned snapshot keeps the positions that it has.
        chunk_tokens: Run the model in steps of this many tokens to save memory.

    Returns:
        A snapshot on the CPU in memory of its own.

    Raises:
        InputError: The model, the tokens or the cache cannot be used.
    """
    layout = new_cache(model)
    ids = check_ids(model, token_ids)
    if model.training:
        raise InputError("the model is in training mode", "Call model.eval() first")
    if cache is not None and ids.numel():
        positions = _checked_positions(cache, layout, ids.numel())
        require_own_tokens(model, cache, ids, positions, layer_kinds(layout))
    else:
        cache = _prefill(model, ids if ids.numel() else torch.zeros(1, dtype=torch.int64), layout, chunk_tokens)
        positions = [_expected(slot, ids.numel()) for slot in layout.layers]
    pairs = zip(cache.layers, positions, strict=True)
    layers = tuple(_export(index, layer, places) for index, (layer, places) in enumerate(pairs))
    config = config_json(model)
    origin = Origin(
        fingerprint=fingerprint(model, tokenizer),
        model_type=str(model.config.model_type),
        model_name=PurePath(str(model.config.name_or_path or "")).name,
        config=config,
        dtype=_dtype_name(layers[0].keys.dtype),
        layer_kinds=layer_kinds(layout),
        rope_layers=_tested_layers(config, layers, rotating_layers(model, config)),
        next_position=ids.numel(),
    )
    return KVSnapshot(layers, ids, origin)


def check_ids(model: CausalLM, token_ids: Tensor | Sequence[int]) -> Tensor:
    """Return the tokens as [N] int64 on the CPU in memory of their own.

    Raises:
        InputError: They are no sequence of ids, lie outside the model's vocabulary, or are more than its context.
    """
    if isinstance(token_ids, Mapping):
        raise InputError("token_ids are a mapping", 'Pass its ids alone, such as tokenizer(text)["input_ids"]')
    try:
        ids = token_ids.detach() if isinstance(token_ids, Tensor) else torch.tensor(list(token_ids))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"token_ids are not a list of integers ({error})") from error
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise InputError(f"token_ids must be integers, not {ids.dtype}")
    if ids.ndim != 1:
        what = f"token_ids must be one sequence, not of shape {tuple(ids.shape)}"
        raise InputError(what, "Record one session at a time")
    ids = ids.to("cpu", torch.int64, copy=True)
    vocabulary, context = vocabulary_tokens(model), configured_context(model)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        wrong = int(ids[(ids < 0) | (ids >= vocabulary)][0])
        raise InputError(f"token {wrong} is outside the vocabulary of {vocabulary}", "Use the tokenizer of this model")
    if context is not None and ids.numel() > context // 2:  # only then it matters where the model begins to count
        context = context_tokens(model)
    if context is not None and ids.numel() > context:
        raise InputError(
            f"the session has {ids.numel()} tokens but the model's context ends at {context}", "Shorten the session"
        )
    return ids


def _checked_positions(cache: Cache, layout: DynamicCache, tokens: int) -> list[Tensor]:
    """Return for each layer the positions [T] of its last T entries.

    Raises:
        InputError: The cache is not one sequence of `tokens` tokens in a layout that fits the model's.
    """
    kinds, expected = layer_kinds(cache), layer_kinds(layout)
    if len(kinds) != len(expected):
        raise InputError(f"the cache has {len(kinds)} layers, the model {len(expected)}", "Use the cache of this model")
    found = []
    for index, (layer, kind, wanted) in enumerate(zip(cache.layers, kinds, expected, strict=True)):
        if kind != wanted and kind == "sliding_attention":
            what = f"layer {index} of the cache has a sliding window, the model's has none"
            raise InputError(what, "Use the cache of this model")
        if layer.keys is not None and layer.keys.ndim == 4 and layer.keys.shape[0] != 1:
            remedy = "Take one row of it: cache.batch_select_indices(torch.tensor([row])); a padded row is run again"
            raise InputError(f"the cache holds a batch of {layer.keys.shape[0]}", remedy)
        if layer.keys is not None:
            _dtype_name(layer.keys.dtype)
        covered, places = layer.get_seq_length(), None
        if covered == tokens:
            places = _expected(layout.layers[index], tokens)
        if isinstance(cache, SessionCache) and wanted == "full_attention":
            places = cache.positions_of(index, covered, tokens)
        if places is None:
            remedy = "Pass the tokens that the cache has seen; generate leaves its last token out"
            raise InputError(f"the cache covers {covered} tokens but {tokens} were given", remedy)
        found.append(places)
    return found


def _expected(planned: Any, tokens: int) -> Tensor:
    """Return the positions that a layer of the model's own layout keeps of a session."""
    window = getattr(planned, "sliding_window", 0)
    kept = min(tokens, window - 1) if window > 1 else tokens
    return torch.arange(tokens - kept, tokens)


def _prefill(model: CausalLM, ids: Tensor, cache: DynamicCache, chunk_tokens: int | None) -> DynamicCache:
    """Run the model over `ids` [N] and return the filled cache."""
    if chunk_tokens is not None and chunk_tokens < 1:
        raise InputError(f"chunk_tokens must be positive, not {chunk_tokens}")
    if chunk_tokens is not None and chunk_tokens < ids.numel() and not has_steady_rope(model, ids.numel()):
        what = f"the RoPE of model type {model.config.model_type!r} depends on the length of what is run at once"
        raise InputError(what, "Leave chunk_tokens out")
    with torch.inference_mode():
        for chunk in torch.split(ids, chunk_tokens or ids.numel()):
            run(model, chunk[None], cache, last_only=True)
    return cache


def _export(index: int, layer: Any, positions: Tensor) -> LayerKV:
    """Copy one layer out of a cache.

    Args:
        index: Index of the layer, for messages.
        layer: Filled cache layer.
        positions: [T] int64, of its last T entries; none of a stand-in for an empty session.
    """
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or keys.ndim != 4 or values.ndim != 4:
        raise InputError(f"layer {index} holds no keys and values of shape [1, heads, tokens, size]", SUPPORTED)
    kept = len(positions)
    if keys.shape[2] < kept or values.shape[2] != keys.shape[2]:
        raise InputError(f"layer {index} holds {keys.shape[2]} tokens where {kept} are needed", "Use an unpruned cache")
    start = keys.shape[2] - kept
    return LayerKV(_own(keys[0, :, start:]), _own(values[0, :, start:]), positions)


def _own(tensor: Tensor) -> Tensor:
    """Copy to contiguous CPU memory; outside inference_mode, so that training code may use the result."""
    with torch.inference_mode(False):
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _dtype_name(found: torch.dtype) -> str:
    name = next((name for name, dtype in CACHE_DTYPES.items() if dtype == found), None)
    if name is None:
        raise InputError(f"a cache of {found} cannot be used", f"Load the model in {', '.join(CACHE_DTYPES)}")
    return name


def _tested_layers(config: dict[str, Any], layers: tuple[LayerKV, ...], probed: tuple[bool, ...]) -> tuple[bool, ...]:
    """Return the layers of `probed` whose captured keys survive undo and redo."""
    adapter = rope_from_config(config, probed)
    return tuple(
        rotates and bool(_round_trip(adapter.redo(i, adapter.undo(i, kv.keys, kv.positions), kv.positions), kv.keys))
        for i, (kv, rotates) in enumerate(zip(layers, probed, strict=True))
    )


def _round_trip(again: Tensor, keys: Tensor) -> bool:
    """Return whether `again` [H, T, D] is `keys` up to float32 rounding, measured against each key's largest value.

    Bit equality in 16 bits would be the wrong question: beside a partner ten thousand times larger even a tiny float32
    error moves a small value by a bfloat16 step.
    """
    if keys.numel() == 0:
        return True
    exact = keys.float()
    scale = exact.abs().amax(dim=-1, keepdim=True)
    return bool(((again - exact).abs() <= ROUND_TRIP_TOLERANCE * scale).all())
