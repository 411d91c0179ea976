"""Several sessions in one batch: caches of different lengths, each at its own positions.

```
session A   . . a a a a a a │ p p │ n n n        . padding, hidden by the mask
session B   b b b b b b b b │ . p │ n n n        p pending tokens, n new ones
```
Caches are padded on the left, so that what comes stands in one column. A token's place in the padded cache says
nothing about its position: positions are always stated, and a pruned session goes on where it stopped, not where its
cache ends.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.families import new_cache
from kvcompress.hf.forward import run
from kvcompress.hf.generation import require_room
from kvcompress.hf.restore import restore
from kvcompress.hf.rope_length import has_steady_rope
from kvcompress.hf.types import Cache, CausalLM
from kvcompress.snapshot import KVSnapshot


@dataclass(slots=True, eq=False)
class Batch:
    """Caches of B sessions as one.

    Attributes:
        cache: The model's cache of batch size B, padded on the left.
        mask: [B, T] int64, 0 where a session has padding.
        next_positions: For each session the position of the next token to be fed.
    """

    cache: Cache
    mask: Tensor
    next_positions: list[int]


def restore_batch(snapshots: Sequence[KVSnapshot], model: CausalLM) -> Batch:
    """Return the caches of several sessions of one model as a batch; they share no memory with the snapshots.

    Raises:
        MismatchError: A snapshot comes from another model.
        InputError: There is none, a layer has a sliding window, a session's layers hold different numbers of tokens, or
            the model's RoPE depends on the length of the session.
    """
    if not snapshots:
        raise InputError("an empty batch cannot be restored", "Give at least one session")
    if len(snapshots) > 1 and not has_steady_rope(model, sys.maxsize):
        what = f"the RoPE of model type {model.config.model_type!r} depends on the length of the session"
        raise InputError(what, "Resume such sessions one by one")
    lengths = []
    for number, snapshot in enumerate(snapshots):
        if "sliding_attention" in snapshot.origin.layer_kinds:
            what = f"session {number} has layers with a sliding window, which cannot be padded"
            raise InputError(what, "Resume such sessions one by one")
        held = {len(layer.positions) for layer in snapshot.layers}
        if len(held) != 1:
            what = f"the layers of session {number} hold from {min(held)} to {max(held)} tokens"
            raise InputError(what, "Resume sessions pruned layer by layer one by one")
        lengths.append(held.pop())
    longest = max(lengths)
    cache: Cache = new_cache(model)
    singles: list[Any] = [restore(snapshot, model) for snapshot in snapshots]
    mask = torch.zeros(len(snapshots), longest, dtype=torch.int64, device=model.device)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = 1
    for index, slot in enumerate(cache.layers if longest else ()):
        pairs = [
            _padded(single.layers[index], snapshot.layers[index], longest, model)
            for single, snapshot in zip(singles, snapshots, strict=True)
        ]
        keys, values = (torch.cat(column) for column in zip(*pairs, strict=True))
        slot.lazy_initialization(keys, values)
        slot.keys, slot.values = keys, values
    return Batch(cache, mask, [snapshot.origin.next_position for snapshot in snapshots])


def _padded(layer: Any, exact: Any, longest: int, model: CausalLM) -> tuple[Tensor, Tensor]:
    """Return keys and values [1, H, longest, D], zeros on the left."""
    found = []
    for part, like in ((layer.keys, exact.keys), (layer.values, exact.values)):
        padded = torch.zeros(1, like.shape[0], longest, like.shape[2], dtype=model.dtype, device=model.device)
        if part is not None and like.shape[1]:
            padded[:, :, longest - like.shape[1] :] = part
        found.append(padded)
    return found[0], found[1]


@torch.no_grad()
def feed_batch(model: CausalLM, batch: Batch, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """Feed each session its tokens, at least one, and advance the batch in place.

    Returns:
        [B, V] float: the prediction after the last token of each session.

    Raises:
        InputError: A session has no token, there are not as many lists as sessions, or the model is in training mode.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout changes every prediction", "Call model.eval()")
    if len(token_ids) != len(batch.next_positions) or not all(map(len, token_ids)):
        raise InputError(f"{len(token_ids)} lists of tokens do not feed {len(batch.next_positions)} sessions")
    fed = max(map(len, token_ids))
    ids = torch.zeros(len(token_ids), fed, dtype=torch.int64)
    positions, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, tokens in enumerate(token_ids):
        start = fed - len(tokens)
        ids[row, start:] = torch.tensor([int(token) for token in tokens])
        positions[row, start:] = torch.arange(batch.next_positions[row], batch.next_positions[row] + len(tokens))
        mask[row, start:] = 1
    batch.mask = torch.cat([batch.mask, mask.to(model.device)], 1)
    logits = run(model, ids, batch.cache, position_ids=positions, attention_mask=batch.mask)
    batch.next_positions = [at + len(tokens) for at, tokens in zip(batch.next_positions, token_ids, strict=True)]
    return logits[:, -1]


def generate_batch(
    model: CausalLM,
    batch: Batch,
    pending_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """Feed each session its pending tokens, then generate greedily; the batch is advanced in place.

    Args:
        model: A causal language model in evaluation mode.
        batch: From `restore_batch`.
        pending_ids: For each session at least one token, fed at its next position.
        max_new_tokens: Upper bound on the tokens generated for each.
        stop_ids: Tokens after which a session ends; the one that ended it is part of the result.

    Raises:
        InputError: As `feed_batch`, or more tokens than the model's context.
    """
    for at, tokens in zip(batch.next_positions, pending_ids, strict=False):
        end_position = at + len(tokens) + max(max_new_tokens - 1, 0)
        require_room(model, end_position, "Ask for fewer new tokens or give shorter prompts")
    new_ids: list[list[int]] = [[] for _ in pending_ids]
    fed = [list(tokens) for tokens in pending_ids]
    for _ in range(max_new_tokens):
        best = feed_batch(model, batch, fed).argmax(-1).tolist()
        for row, token in enumerate(best):
            if not new_ids[row] or new_ids[row][-1] not in stop_ids:
                new_ids[row].append(token)
        if all(row[-1] in stop_ids for row in new_ids):
            break
        fed = [[token] for token in best]
    return new_ids
