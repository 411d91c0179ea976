"""Find out whether a cache is what a model makes of some tokens, without running the model over all of it.

```
                      layer 0      all layers
every token           keys, values                 depend on token and position: finds other tokens, other positions
the first few                      keys, values    finds what was hidden at the beginning, such as padding on the left
the last one                       keys, values    from the cache before it: finds what was hidden anywhere
```
What a snapshot put in may be lossy; of that the tokens are compared, and the rest is looked at as above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvcompress.errors import InputError
from kvcompress.hf.call import call, open_mask
from kvcompress.hf.early_stop import EarlyStopCache, run_first_layers
from kvcompress.hf.positions import model_positions
from kvcompress.hf.rope_length import has_steady_rope
from kvcompress.hf.session_cache import SessionCache
from kvcompress.hf.types import Cache, CausalLM

CHUNK_TOKENS = 2048
FIRST_TOKENS = 32
SHALLOW = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
DEEP = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative error that other kernels, chunks and devices may make: of every token in a first layer, and the median."""

REMEDY = "Pass the tokens that this cache has seen, from the first on; run a padded row again without its padding"


class _Passing(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that shows what it holds and what is new side by side, and keeps only what is new."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of both, in the model's data type; the cache under test is never copied as a whole."""
        held: Any = self
        kind = key_states.dtype
        shown = torch.cat([held.keys.to(kind), key_states], -2), torch.cat([held.values.to(kind), value_states], -2)
        self.keys, self.values = key_states, value_states
        return shown


def require_own_tokens(
    model: CausalLM, cache: Cache, token_ids: Tensor, positions: Sequence[Tensor], kinds: Sequence[str]
) -> None:
    """Raise `InputError` where a cache is not the model's of these tokens at positions from 0 on, nothing hidden.

    Args:
        model: A supported model in evaluation mode.
        cache: One sequence; read, never changed.
        token_ids: [N] int64, N >= 1.
        positions: For each layer [T] int64, of its last T entries.
        kinds: Kind of each layer, as in `Origin.layer_kinds`.
    """
    restored = min(cache.restored_tokens, len(token_ids)) if isinstance(cache, SessionCache) else 0
    if isinstance(cache, SessionCache) and cache.token_ids[:restored] != token_ids[:restored].tolist():
        raise InputError("the cache was restored from a snapshot of other tokens", REMEDY)
    if restored >= len(token_ids):
        return
    with torch.inference_mode():
        _check_first_layers(model, cache, token_ids, positions, kinds, restored)
        if not restored and has_steady_rope(model, len(token_ids)):
            _check_first_tokens(model, cache, token_ids[:FIRST_TOKENS], positions)
        _check_last_token(model, cache, token_ids, positions)


def _check_first_layers(
    model: CausalLM,
    cache: Cache,
    token_ids: Tensor,
    positions: Sequence[Tensor],
    kinds: Sequence[str],
    restored: int,
) -> None:
    """Compare layer 0 at every token; where a layer forgets some, also the first one that tells what was hidden.

    That is the first of full attention behind layer 0, or layer 1: what layer 0 could not see shows in it.
    """
    steady, last = has_steady_rope(model, len(token_ids)), 0
    forgot = any(len(places) < len(token_ids) for places in positions)
    if steady and not restored and forgot and len(kinds) > 1:
        last = kinds.index("full_attention", 1) if "full_attention" in kinds[1:] and kinds[0] != "full_attention" else 1
    again: Any = EarlyStopCache(last)
    for chunk in torch.split(token_ids, CHUNK_TOKENS):
        run_first_layers(model, chunk[None], again, attention_mask=open_mask(again, chunk[None]))
    for index in {0, last}:
        places = positions[index]
        new = places >= restored
        if not bool(new.any()):
            continue
        made, held = _entries(again.layers[index], places[new]), _newest(cache.layers[index], int(new.sum()))
        # Frequencies that grew while the session did have left keys that one run does not make again.
        errors = torch.stack([_errors(*pair) for pair in zip(made, held, strict=True)][0 if steady else 1 :]).amax(0)
        wrong = errors > (index + 1) * _tolerance(SHALLOW, held[0], made[0])
        if bool(wrong.any()):
            place = int(places[new][wrong.cpu()][0])
            raise InputError(
                f"the cache is not of these tokens: position {place} holds another, or one of another place", REMEDY
            )


def _check_first_tokens(model: CausalLM, cache: Cache, token_ids: Tensor, positions: Sequence[Tensor]) -> None:
    again: Any = DynamicCache()  # without a configuration no layer forgets, however small its window
    call(model, token_ids[None], again, attention_mask=open_mask(again, token_ids[None]), last_only=True)
    for index, places in enumerate(positions):
        here = places[places < len(token_ids)]
        if not len(here) or index >= len(again.layers) or again.layers[index].keys is None:
            continue
        layer = cache.layers[index]
        oldest = tuple(part[0, :, -len(places) :][:, : len(here)] for part in (layer.keys, layer.values))
        _require_alike(_entries(again.layers[index], here), oldest, index)


def _check_last_token(model: CausalLM, cache: Cache, token_ids: Tensor, positions: Sequence[Tensor]) -> None:
    """Feed the last token once more behind the rest of the cache, where the rest is all that it saw."""
    lengths = {len(places) for places in positions}
    forgot = any(getattr(layer, "is_sliding", False) for layer in cache.layers) and min(lengths) < len(token_ids)
    if forgot or len(lengths) > 1 or len(token_ids) < 2 or _layer_count(model) != len(cache.layers):
        return
    before: Any = DynamicCache()
    for layer in cache.layers:
        slot: Any = _Passing()  # type: ignore[no-untyped-call]
        slot.lazy_initialization(layer.keys, layer.values)
        slot.keys, slot.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
        before.layers.append(slot)
    ids, place, mask = (
        token_ids[None, -1:],
        torch.tensor([[len(token_ids) - 1]]),
        open_mask(before, token_ids[None, -1:]),
    )
    told = model_positions(model, place, before, mask)
    call(model, ids, before, position_ids=told, attention_mask=mask, ends_early=True)
    pairs = zip(before.layers, cache.layers, strict=True)
    errors = torch.stack(
        [torch.stack([*_layer_errors(_newest(made, 1), _newest(held, 1))]).amax() for made, held in pairs]
    )
    tolerance = _tolerance(DEEP, cache.layers[0].keys, before.layers[0].keys)
    # What was hidden tells from layer 1 on; the first one only shows the position.
    if float(errors[0]) > tolerance or (len(errors) > 1 and float(errors[1:].median()) > tolerance):
        raise _hidden(len(errors) - 1)


def _require_alike(made: tuple[Tensor, Tensor], held: tuple[Tensor, ...], index: int) -> None:
    median = max(float(errors.median()) for errors in _layer_errors(made, held))
    if median > _tolerance(DEEP, held[0], made[0]):
        raise _hidden(index)


def _hidden(index: int) -> InputError:
    what = (
        f"the cache is not what the model makes of these tokens (layer {index}): some were padding, or hidden from it"
    )
    return InputError(what, REMEDY)


def _layer_errors(made: tuple[Tensor, ...], held: tuple[Tensor, ...]) -> Iterator[Tensor]:
    return (_errors(one, other) for one, other in zip(made, held, strict=True))


def _errors(made: Tensor, held: Tensor) -> Tensor:
    """Return the relative error of each entry [T] of keys or values [H, T, D]."""
    exact = made.float().transpose(0, 1).flatten(1)
    lost = (held.to(made.device).float().transpose(0, 1).flatten(1) - exact).norm(dim=1)
    sizes = exact.norm(dim=1)
    relative: Tensor = lost / sizes.clamp(min=float(sizes.mean()) / 100 + 1e-20)
    return relative


def _entries(layer: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values [H, T, D] at places of a layer that holds every one."""
    index = places.to(layer.keys.device)
    return layer.keys[0].index_select(1, index), layer.values[0].index_select(1, index)


def _newest(layer: Any, count: int) -> tuple[Tensor, Tensor]:
    return layer.keys[0, :, -count:], layer.values[0, :, -count:]


def _tolerance(table: dict[torch.dtype, float], held: Tensor, made: Tensor) -> float:
    return max(table.get(part.dtype, 0.0) for part in (held, made))


def _layer_count(model: CausalLM) -> int | None:
    """Return the layers of the decoder; where fewer are cached, some read others' entries."""
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None)
    return count if isinstance(count, int) else None
