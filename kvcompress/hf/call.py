"""The one place that calls a model: every run over tokens goes through here, most of them by `kvcompress.hf.forward`.

transformers up to 5.23 takes the cache as `past_key_values`, later ones as `cache`, and a `forward` with `**kwargs`
swallows the name it does not know: it would run without any context and say nothing. So the name is read from the
signature, and after the call the cache must have grown by what was fed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError, first_line
from kvcompress.hf.rope_length import forget_length
from kvcompress.hf.types import Cache, CausalLM

CACHE_NAMES = ("past_key_values", "cache")
"""What transformers calls a cache, oldest name first: a release between the two may know both."""


NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""What torch says in a RuntimeError where memory is short: no fault of the model's code."""

FAULTS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model's code raises where it cannot take what it is given."""


def call(
    model: CausalLM,
    input_ids: Tensor,
    cache: Cache | None = None,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    last_only: bool = False,
    ends_early: bool = False,
) -> Tensor:
    """Run a model over tokens and advance its cache in place. Whether gradients are kept is the caller's to say.

    Args:
        model: A causal language model.
        input_ids: [B, T] int64 on any device, T >= 1.
        cache: The model's cache of batch size B; None runs it without one.
        position_ids: [B, T] or [1, T] int64, as the model counts them; None leaves them to the model.
        attention_mask: [B, held + T] int64; None leaves it to the model. `open_mask` hides nothing.
        last_only: Spare the logits of all tokens but the last, where the model can.
        ends_early: The cache ends the call by an exception of its own; whether it grew is then the caller's to check.

    Returns:
        Logits [B, T, V], or [B, 1, V] with `last_only` where the model can: the last row is always the last token's.

    Raises:
        InputError: The model takes no cache, did not put the tokens into it, or its code fails over them.
    """
    given = {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": attention_mask}
    options: dict[str, Any] = {name: part.to(model.device) for name, part in given.items() if part is not None}
    options |= {"use_cache": cache is not None} | take_logits(model, last_only)
    before = _lengths(cache)
    if cache is not None:
        options[cache_name(model)] = cache
    forget_length(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers about its own code: users cannot heed it
            output = model(**options)
    except torch.OutOfMemoryError:
        raise
    except FAULTS as error:
        if any(words in str(error) for words in NO_MEMORY):
            raise
        what = f"model type {model.config.model_type!r} cannot be run over {input_ids.shape[1]} tokens"
        remedy = "Check that the model itself runs so, with this version of transformers"
        raise InputError(f"{what} ({first_line(error)})", remedy) from error
    finally:
        forget_length(model)
    if cache is not None and not ends_early:
        _require_growth(model, cache, before, input_ids.shape[1])
    logits: Tensor = output.logits
    return logits


def cache_name(model: CausalLM) -> str:
    """Return the name under which a model's `forward` takes its cache.

    Raises:
        InputError: It names none.
    """
    known = _parameters(model)
    for name in CACHE_NAMES:
        if name in known:
            return name
    what = f"model type {model.config.model_type!r} takes no key-value cache under a name known here"
    raise InputError(what, f"Pass a model itself, not a wrapper, whose forward takes {' or '.join(CACHE_NAMES)}")


def take_logits(model: CausalLM, last_only: bool) -> dict[str, int]:
    """Return the keyword that spares a model the logits nobody reads; empty where its `forward` does not know it."""
    return {"logits_to_keep": 1} if last_only and "logits_to_keep" in _parameters(model) else {}


def held_tokens(cache: Cache) -> int:
    """Return the number of tokens in the longest layer; sliding layers count every token seen, pruned ones their own.

    A mask shorter than any layer's count would be padded with zeros and hide the newest tokens, so it needs this one.
    """
    return max(_lengths(cache).values(), default=0)


def open_mask(cache: Cache, input_ids: Tensor) -> Tensor:
    """Return [B, held + T] int64 ones: nothing in the cache or among the tokens [B, T] is hidden."""
    rows, tokens = input_ids.shape
    return torch.ones(rows, held_tokens(cache) + tokens, dtype=torch.int64)


def _parameters(model: CausalLM) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _lengths(cache: Cache | None) -> dict[int, int]:
    """Return the tokens of each layer that holds keys; layers with a running state count none."""
    layers = enumerate(getattr(cache, "layers", ()))
    return {index: int(layer.get_seq_length()) for index, layer in layers if hasattr(layer, "keys")}


def _require_growth(model: CausalLM, cache: Cache, before: Mapping[int, int], tokens: int) -> None:
    """Raise `InputError` unless every layer that the model uses took all tokens, and at least one did."""
    after = _lengths(cache)
    used = [index for index in after if cache.layers[index].keys is not None]
    grown = {after[index] - before.get(index, 0) for index in used} or {0}
    if grown == {tokens}:
        return
    what = f"model type {model.config.model_type!r} put {min(grown)} of {tokens} tokens into its cache"
    raise InputError(what, "Use a model and a version of transformers whose forward fills the cache it is given")
