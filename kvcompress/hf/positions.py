"""Which positions a model gives its tokens by itself, and whether it heeds those that it is told.

A session counts its tokens from 0. Most models do the same; some begin behind the padding index (RoBERTa and its kin),
some count the entries of their cache and heed no `position_ids` (BART and its kin as causal models). Nothing of this
stands in a configuration, so it is found out by runs over a few tokens of the model's first layers.

```
                     what the model does by itself      what it is told
whole cache          entries 0..N-1, next: N + offset   nothing: its own count is right, whatever it is
entries dropped      would count what is left: wrong    position + offset, or it is refused
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.call import held_tokens
from kvcompress.hf.early_stop import EarlyStopCache, run_first_layers
from kvcompress.hf.types import Cache, CausalLM

PROBE_TOKENS = 8
PROBE_LAYERS = 4
DROPPED = 3  # an entry in the middle of the probe
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Of the largest key: what the same computation may differ by."""

REMEDY = "Keep every token of such a session: leave --plan, --keep and --keep-fraction out"


@dataclass(frozen=True, slots=True)
class PositionRule:
    """How a model counts.

    Attributes:
        offset: Position that it gives a session's first token.
        stated: Whether it heeds the positions that it is told, so that a cache may lack entries.
    """

    offset: int = 0
    stated: bool = True


_RULES: WeakKeyDictionary[Any, PositionRule] = WeakKeyDictionary()


def position_rule(model: CausalLM) -> PositionRule:
    """Return how a model counts; found out once and kept with the model."""
    known = _RULES.get(model)
    if known is None:
        known = _probed(model)
        _RULES[model] = known
    return known


def require_droppable(model: CausalLM) -> None:
    """Raise `InputError` where a cache must hold every entry: the model heeds no positions, or counts a window by them.

    GPT-Neo caches everything in its layers of local attention too, and takes the newest entries for the nearest tokens.
    """
    require_stated(model)
    config = model.config.get_text_config(decoder=True)
    if "local" in (getattr(config, "attention_layers", None) or ()):
        what = f"model type {config.model_type!r} counts the window of its local attention by the entries of its cache"
        raise InputError(f"{what}, so none of them can be left out", REMEDY)


def require_stated(model: CausalLM) -> PositionRule:
    """Return how a model counts, raising `InputError` where it heeds no positions, so that no entry may be missing."""
    rule = position_rule(model)
    if not rule.stated:
        raise refusal(str(model.config.model_type))
    return rule


def refusal(model_type: str) -> InputError:
    """Return the error of a model that counts the entries of its cache, and of which one is missing."""
    what = f"model type {model_type!r} counts positions by the entries of its cache, so none of them can be left out"
    return InputError(what, REMEDY)


def model_positions(model: CausalLM, positions: Tensor, cache: Cache | None, mask: Tensor | None) -> Tensor | None:
    """Return what to tell the model of the positions in a session [B, T]; None where its own count is the same.

    Args:
        model: A causal language model.
        positions: [B, T] or [1, T] int64, counted from 0.
        cache: What the tokens are fed behind; None for nothing.
        mask: [B, held + T] int64 or None; where it hides something the model's own count is not relied on.

    Raises:
        InputError: The model counts by itself and would count wrong.
    """
    held, tokens = _held(cache), positions.shape[-1]
    whole = held is not None and bool((positions.cpu() == torch.arange(held, held + tokens)).all())
    if whole and (mask is None or bool(mask.all())):
        return None
    return positions + require_stated(model).offset


def _held(cache: Cache | None) -> int | None:
    """Return how many tokens every layer counts, None where they do not agree."""
    if cache is None:
        return 0
    counts = {int(layer.get_seq_length()) for layer in cache.layers if hasattr(layer, "keys")} or {0}
    return counts.pop() if len(counts) == 1 else None


def _probed(model: CausalLM) -> PositionRule:
    pads = _padding_ids(model)
    vocabulary: int = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([token for token in range(PROBE_TOKENS + 1 + len(pads)) if token not in pads]) % vocabulary
    try:
        with torch.no_grad():
            return _probe(model, ids[None, : PROBE_TOKENS + 1], pads)
    except (InputError, RuntimeError):  # a model that fails over stated positions does not heed them
        return PositionRule(stated=False)


def _probe(model: CausalLM, ids: Tensor, pads: set[int]) -> PositionRule:
    first, last = ids[:, :PROBE_TOKENS], ids[:, PROBE_TOKENS:]
    own = _keys(model, first)
    offset = next((at for at in (0, *(pad + 1 for pad in pads)) if _alike(own, _told(model, first, at))), None)
    if offset is None:
        return PositionRule(stated=False)
    place = PROBE_TOKENS + offset
    unmoved = _keys(model, last, own)
    dropped = _told(model, last, place, [_without(layer, DROPPED) for layer in own])
    moved = _told(model, last, place + DROPPED, own)
    heeded = _alike(unmoved[:1], dropped[:1]) and not _alike(unmoved, moved)
    return PositionRule(offset, heeded)


def _told(model: CausalLM, ids: Tensor, position: int, held: list[tuple[Tensor, Tensor]] | None = None) -> Any:
    return _keys(model, ids, held, torch.arange(position, position + ids.shape[1])[None])


def _keys(
    model: CausalLM,
    ids: Tensor,
    held: list[tuple[Tensor, Tensor]] | None = None,
    positions: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Run the first layers over ids [1, T] behind what is held; return keys and values of the new tokens by layer."""
    cache: Any = EarlyStopCache(-1)
    for index, (keys, values) in enumerate(held or ()):
        cache.update(keys, values, index)
    cache.last = PROBE_LAYERS - 1
    mask = torch.ones(1, held_tokens(cache) + ids.shape[1], dtype=torch.int64)
    run_first_layers(model, ids, cache, position_ids=positions, attention_mask=mask)
    new = slice(-ids.shape[1], None)
    filled = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return [(layer.keys[:, :, new], layer.values[:, :, new]) for layer in filled]


def _without(layer: tuple[Tensor, Tensor], entry: int) -> tuple[Tensor, Tensor]:
    keep = torch.tensor([place for place in range(PROBE_TOKENS) if place != entry], device=layer[0].device)
    return layer[0].index_select(2, keep), layer[1].index_select(2, keep)


def _alike(these: list[tuple[Tensor, Tensor]], those: list[tuple[Tensor, Tensor]]) -> bool:
    """Return whether keys and values of the same layers are the same up to rounding."""
    pairs = [pair for one, other in zip(these, those, strict=True) for pair in zip(one, other, strict=True)]
    return all(bool((a - b).abs().max() <= TOLERANCE.get(a.dtype, 0.0) * a.abs().max()) for a, b in pairs)


def _padding_ids(model: CausalLM) -> set[int]:
    configs = (model.config, model.config.get_text_config(decoder=True))
    found = (getattr(config, "pad_token_id", None) for config in configs)
    return {pad for pad in found if isinstance(pad, int) and pad >= 0}
