"""restore: build from a snapshot a cache that the model can continue from."""

from __future__ import annotations

from typing import Any

from kvcompress.errors import InputError
from kvcompress.format.default_device import on_cpu
from kvcompress.hf.families import layer_kinds, new_cache
from kvcompress.hf.origin_check import require_model, require_shapes
from kvcompress.hf.positions import require_droppable
from kvcompress.hf.session_cache import SessionCache
from kvcompress.hf.types import CausalLM, Tokenizer, require_a_model
from kvcompress.snapshot import KVSnapshot, LayerKV


@on_cpu
def restore(
    snapshot: KVSnapshot,
    model: CausalLM,
    *,
    tokenizer: Tokenizer | None = None,
    check_fingerprint: bool = True,
    copy: bool = True,
) -> SessionCache:
    """Return a cache filled from the snapshot, on the model's device and in its data type.

    Where tokens were dropped, it holds fewer entries than the session has tokens, and the caller passes `position_ids`
    that start at `origin.next_position`.

    Args:
        snapshot: The state to go on from.
        model: The model that recorded it.
        tokenizer: Compared with the recording one if both are known.
        check_fingerprint: Refuse any other model; switch off only where the difference is intended.
        copy: Share no memory with the snapshot. False saves a pass over the cache where the snapshot is not needed
            afterwards, as when it was decoded only to be resumed; what was decoded has no gradients then.

    Raises:
        MismatchError: Configuration, weights, rotary embedding, tokenizer or the shapes of layers differ.
        InputError: The model is not supported, its layers do not fit the snapshot, or tokens were dropped and it
            heeds no positions.
    """
    if not isinstance(snapshot, KVSnapshot):
        what = f"a cache is restored from a snapshot, not from {type(snapshot).__name__}"
        raise InputError(what, "Give what kv.capture returned; for a file use kv.load_session")
    require_a_model(model)
    if check_fingerprint:
        require_model(snapshot.origin, model, tokenizer)
    cache = new_cache(model)
    found, expected = layer_kinds(cache), snapshot.origin.layer_kinds
    if found != expected:
        what = f"the model's {len(found)} layers do not fit the snapshot's {len(expected)} in number or kind"
        raise InputError(what, "Use the model that this cache was recorded with")
    if check_fingerprint:
        require_shapes(snapshot, model)
    if snapshot.lacks_tokens:
        require_droppable(model)
    for index, (slot, layer) in enumerate(zip(cache.layers, snapshot.layers, strict=True)):
        _fill(index, slot, layer, model, snapshot.origin.next_position, copy=copy)
    cache.note_restored(snapshot.token_ids, [layer.positions for layer in snapshot.layers])
    return cache


def _fill(index: int, slot: Any, layer: LayerKV, model: CausalLM, next_position: int, *, copy: bool) -> None:
    """Put one layer into an empty cache layer, which stays untouched if there is nothing to put."""
    window = getattr(slot, "sliding_window", None)
    if window is not None:
        _require_whole_window(index, layer, window, next_position)
        slot.cumulative_length = next_position  # the true length; the tensors only show the window
    if layer.keys.shape[1] == 0:
        return
    keys = layer.keys[None].to(model.device, model.dtype, copy=copy)
    values = layer.values[None].to(model.device, model.dtype, copy=copy)
    slot.lazy_initialization(keys, values)
    slot.keys, slot.values = keys, values


def _require_whole_window(index: int, layer: LayerKV, window: int, next_position: int) -> None:
    """Raise `InputError` unless the layer holds every token of its window: the mask counts on it."""
    kept = min(next_position, window - 1) if window > 1 else next_position
    if layer.positions.numel() != kept or (kept and int(layer.positions[0]) != next_position - kept):
        what = f"layer {index} holds {layer.positions.numel()} of the {kept} tokens in its sliding window"
        raise InputError(what, "Drop tokens in layers with full attention only")
