"""Continue from a cache: feed tokens at their original positions, generate, stream the text.

A cache may hold fewer entries than the session has tokens (pruning, sliding windows), and transformers derives default
positions from the number of entries. So every call here states its positions, and a pruned cache resumes with the
angles it was made with.

```
tokens seen      0 1 2 ... N-1        all in the cache
with a prompt                   p0 p1 ...        fed at N, N+1, ...
without              N-1                         its entry is taken out and the token fed again, for its logits
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.format.default_device import on_cpu
from kvcompress.hf.families import context_tokens, new_cache
from kvcompress.hf.forward import open_mask, run
from kvcompress.hf.rope_length import restart_length
from kvcompress.hf.session_cache import SessionCache
from kvcompress.hf.types import Cache, CausalLM, Tokenizer

STEPWISE_ATTENTION = "sdpa"  # builds no mask for a single query, so layers of different lengths do not clash
ONE_MASK_ATTENTION = (STEPWISE_ATTENTION, "eager")  # one mask, sized by one layer, serves all layers of a kind


def context_limit(model: CausalLM) -> int | None:
    """Return the longest session the model can take, None where its configuration does not say or sets no end."""
    return context_tokens(model)


def require_room(model: CausalLM, end_position: int, remedy: str) -> None:
    """Raise `InputError` where positions up to `end_position` (exclusive) exceed the model's context."""
    limit = context_limit(model)
    if limit is not None and end_position > limit:
        raise InputError(f"{end_position} tokens exceed the model's context of {limit}", remedy)


@on_cpu
@torch.no_grad()
def feed(model: CausalLM, cache: Cache, token_ids: Tensor, first_position: int, *, last_only: bool = False) -> Tensor:
    """Feed tokens at explicit positions and advance the cache in place.

    Args:
        model: A causal language model in evaluation mode.
        cache: Its cache of one sequence, pruned or not; `token_ids` are appended to it.
        token_ids: [T] int64, T >= 1.
        first_position: Position of `token_ids[0]` in the session.
        last_only: Return the logits after the last token only.

    Returns:
        [T, V] float, or [1, V] with `last_only`: row t is the prediction after token t.

    Raises:
        InputError: No token, a model in training mode, or layers of different lengths under an attention that cannot
            take them.
    """
    if token_ids.ndim != 1 or not token_ids.numel():
        raise InputError(f"token ids of shape {tuple(token_ids.shape)} are not a sequence of one or more tokens")
    logits = feed_rows(model, cache, token_ids[None], first_position, last_only=last_only)[0]
    if isinstance(cache, SessionCache):
        cache.note_fed(token_ids, first_position)
    return logits


@on_cpu
@torch.no_grad()
def feed_rows(
    model: CausalLM, cache: Cache, token_ids: Tensor, first_position: int, *, last_only: bool = False
) -> Tensor:
    """Feed several continuations of one session side by side and advance the cache in place.

    Args:
        model: A causal language model in evaluation mode.
        cache: Its cache of B sequences, pruned or not.
        token_ids: [B, T] int64, T >= 1.
        first_position: Position of the first token of each row.
        last_only: Return the logits after the last tokens only.

    Returns:
        [B, T, V] float, or [B, 1, V] with `last_only`.

    Raises:
        InputError: A model in training mode, or layers of different lengths under an attention that cannot take them.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout changes every prediction", "Call model.eval()")
    ids = token_ids.to(model.device)
    size = 1 if _must_step(model, cache) else ids.shape[1]
    columns: list[Tensor] = []
    for start in range(0, ids.shape[1], size):
        part = ids[:, start : start + size]
        first = first_position + start
        positions = torch.arange(first, first + part.shape[1]).expand(len(part), -1)
        mask = open_mask(cache, part)
        logits = run(model, part, cache, position_ids=positions, attention_mask=mask, last_only=last_only)
        columns = [logits[:, -1:]] if last_only else [*columns, logits]
    return torch.cat(columns, 1)


def _must_step(model: CausalLM, cache: Cache) -> bool:
    """Tell whether layers of different lengths force one token at a time."""
    growing = (layer for layer in cache.layers if hasattr(layer, "keys") and not getattr(layer, "is_sliding", False))
    lengths = {int(layer.get_seq_length()) for layer in growing}
    attention = getattr(model.config, "_attn_implementation", STEPWISE_ATTENTION)
    if len(lengths) < 2 or attention not in ONE_MASK_ATTENTION:
        return False
    if attention != STEPWISE_ATTENTION:
        remedy = f"Load the model with attn_implementation={STEPWISE_ATTENTION!r}"
        what = f"layers of {min(lengths)} to {max(lengths)} tokens need another attention than {attention}"
        raise InputError(what, remedy)
    return True


@on_cpu
def resume_start(
    cache: Cache,
    token_ids: Tensor,
    prompt_ids: Sequence[int] = (),
    *,
    layer_positions: Sequence[Tensor] | None = None,
) -> tuple[list[int], int]:
    """Return the tokens to feed first and the position of the first of them.

    With a prompt the cache stays as it is. Without one the logits after the last token are needed, which a cache does
    not hold: the last token's entry is taken out of every layer, in place, and the token is fed once more.

    Args:
        cache: A cache that covers all of `token_ids`.
        token_ids: [N] int64, every token of the session.
        prompt_ids: What comes next, if anything.
        layer_positions: For each layer [T] int64, the positions it holds; required to be right where pruning may have
            dropped the last token (`LayerKV.positions`). None: every layer holds the last token.

    Raises:
        InputError: No token at all, or a layer from which the last token cannot be taken exactly.
    """
    session_tokens = int(token_ids.numel())
    if len(prompt_ids):
        return [int(token) for token in prompt_ids], session_tokens
    if not session_tokens:
        raise InputError("an empty session has nothing to go on from", "Give a prompt")
    for index, layer in enumerate(cache.layers):  # all checks first: a refused cache must stay whole
        _require_removable(index, layer)
    for index, layer in enumerate(cache.layers):
        held = None if layer_positions is None else layer_positions[index]
        if held is None or (held.numel() and int(held[-1]) == session_tokens - 1):
            _remove_last(layer)
    return [int(token_ids[-1])], session_tokens - 1


def _require_removable(index: int, layer: Any) -> None:
    remedy = "Give a prompt of at least one token"
    if not hasattr(layer, "keys"):
        raise InputError(f"layer {index} keeps a running state from which the last token cannot be taken", remedy)
    # A full window has already dropped the oldest token that the last one saw: taking the last one out leaves a gap.
    if getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window:
        raise InputError(f"the sliding window of layer {index} ({layer.sliding_window} tokens) has moved on", remedy)


def _remove_last(layer: Any) -> None:
    if layer.keys is None:  # every token of it was dropped
        return
    layer.keys = layer.keys[..., :-1, :]
    layer.values = layer.values[..., :-1, :]
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length -= 1


@on_cpu
@torch.no_grad()
def generate_from(
    model: CausalLM,
    cache: Cache,
    pending_ids: Sequence[int],
    *,
    next_position: int,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    on_token: Callable[[int], object] | None = None,
    on_logits: Callable[[Tensor], object] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Feed the pending tokens, then generate; the cache is advanced in place.

    Afterwards the cache covers everything but the last new token: to go on, pass that one as the first pending token.

    Args:
        model: A causal language model in evaluation mode.
        cache: The cache, covering everything before the pending tokens.
        pending_ids: At least one token; `resume_start` gives them.
        next_position: Position of `pending_ids[0]` in the session.
        max_new_tokens: Upper bound on the tokens generated.
        stop_ids: Tokens after which generation ends; the one that ended it is part of the result.
        on_token: Called with each new token but a stopping one, as soon as it is known; for example a `TextStream`.
        on_logits: Called with the logits [V] that each new token is chosen from.
        temperature: 0 takes the most likely token, more than 0 samples.
        seed: Seed of the sampling.

    Raises:
        InputError: No pending token, a negative count or temperature, more tokens than the model's context, or a cache
            that `generate` would compute again (`kvcompress.hf.rope_length`) of tokens that it does not know.
    """
    if not len(pending_ids):
        raise InputError("no pending token", "Call resume_start, which takes the last token out of the cache")
    if max_new_tokens < 0 or temperature < 0:
        raise InputError(f"max_new_tokens {max_new_tokens} and temperature {temperature} must not be negative")
    # The last new token is never fed, so it needs no position.
    end_position = next_position + len(pending_ids) + max(max_new_tokens - 1, 0)
    require_room(model, end_position, "Ask for fewer new tokens or give a shorter prompt")
    sampler = torch.Generator().manual_seed(seed)
    fed, position, new_ids = torch.tensor([int(token) for token in pending_ids]), next_position, list[int]()
    while len(new_ids) < max_new_tokens:
        fed, position = _restarted(model, cache, fed, position)
        logits = feed(model, cache, fed, position, last_only=True)[-1]
        position += fed.numel()
        if on_logits is not None:
            on_logits(logits)
        token = _choose(logits, temperature, sampler)
        new_ids.append(token)
        if on_token is not None and token not in stop_ids:
            on_token(token)
        if token in stop_ids:
            break
        fed = torch.tensor([token])
    return new_ids


def _restarted(model: CausalLM, cache: Cache, fed: Tensor, position: int) -> tuple[Tensor, int]:
    """Return what to feed, from where: all tokens from 0 on, the cache emptied, where `generate` would do so.

    Raises:
        InputError: The earlier tokens are not known.
    """
    length = restart_length(model)
    if length is None or not 0 < position <= length < position + fed.numel():
        return fed, position
    known = cache.token_ids[:position] if isinstance(cache, SessionCache) else []
    if len(known) < position:
        what = f"beyond {length} tokens the model computes its cache again, of tokens that this cache does not know"
        raise InputError(what, "Fill it by restore or feed, or let model.generate go on with all tokens")
    assert isinstance(cache, SessionCache)
    cache.begin_again(new_cache(model))
    return torch.cat([torch.tensor(known, dtype=fed.dtype), fed]), 0


def _choose(logits: Tensor, temperature: float, sampler: torch.Generator) -> int:
    if bool(torch.isnan(logits).any()):
        raise InputError("the model's logits contain NaN", "A model that overflows in this dtype may need float32")
    if temperature == 0:
        return int(logits.argmax())
    odds = torch.softmax(logits.double().cpu() / temperature, dim=-1)
    return int(torch.multinomial(odds, 1, generator=sampler))


class TextStream:
    """Turn tokens into text as they come, holding back what is not yet a whole character.

    Args:
        tokenizer: Anything with `decode(ids) -> str`.
        write: Called with each new piece of text.
        context_ids: Tokens before the first new one; tokenizers that drop a leading space need them.
    """

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object], context_ids: Sequence[int] = ()) -> None:
        """Start behind `context_ids`, of which a few are kept."""
        self._tokenizer, self._write = tokenizer, write
        self._ids = [int(token) for token in context_ids][-8:]
        self._anchor, self._shown = 0, len(self._ids)

    def __call__(self, token_id: int) -> None:
        """Add one token and write the text that it completes."""
        self._ids.append(int(token_id))
        self._emit(final=False)

    def close(self) -> None:
        """Write what is still held back."""
        self._emit(final=True)

    def _emit(self, *, final: bool) -> None:
        # Decoding from the anchor, a little before the new tokens, gives them their spacing at a bounded cost.
        before = self._tokenizer.decode(self._ids[self._anchor : self._shown])
        text = self._tokenizer.decode(self._ids[self._anchor :])
        if len(text) <= len(before) or (text.endswith("\ufffd") and not final):
            return
        self._write(text[len(before) :])
        self._anchor, self._shown = self._shown, len(self._ids)
