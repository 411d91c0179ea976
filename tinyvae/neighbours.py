"""The decoded tokens that best predict a token, chosen by integers from the token ids alone.

Tokens are decoded in three coding passes, every one at once: each fourth, those half-way between, the rest. A token of
a later pass looks at the nearest tokens of earlier passes before and after it, and at the nearest occurrence, before or
after, of the same token and of the same pair of tokens. What is near in time or has the same words is alike in the
cache, also where the model has moved away from what the tokens alone would tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CODING_PASSES = 3
SOURCES = 4
"""Before, after, same token, same pair."""

SPANS = (slice(0, None, 4), slice(2, None, 4), slice(1, None, 2))
"""Tokens of each coding pass."""

MATCHES = 3
"""Neither the token nor the pair was seen, the token was, both were."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CodingPass:
    """The tokens of one coding pass and where each looks.

    Attributes:
        number: 0, 1 or 2; nothing is known yet in pass 0.
        rows: [N] int64 indices of the pass's tokens, ascending.
        span: The same indices as a slice, which makes views instead of copies.
        sources: [SOURCES, N] int64 indices of tokens of earlier coding passes; T where there is none.
        matches: [N] int64 in 0..MATCHES-1.
    """

    number: int
    rows: Tensor
    span: slice
    sources: Tensor
    matches: Tensor


def pass_numbers(tokens: int) -> Ints:
    """Return the pass [T] of each of `tokens` tokens."""
    numbers = np.zeros(tokens, np.int64)
    for number, span in enumerate(SPANS):
        numbers[span] = number
    return numbers


def coding_passes(token_ids: Tensor) -> Iterator[CodingPass]:
    """Yield the coding passes of a session in decoding order.

    Args:
        token_ids: [T] int64, the tokens that a group of layers holds.
    """
    ids = token_ids.numpy().astype(np.int64)
    tokens = len(ids)
    numbers = pass_numbers(tokens)
    width = int(ids.max(initial=0)) + 1
    pairs = np.concatenate([[-1], ids[:-1] * width + ids[1:]])[:tokens]
    for number in range(CODING_PASSES):
        rows = np.flatnonzero(numbers == number)
        if number == 0:
            sources, matches = np.full((SOURCES, len(rows)), tokens), np.zeros(len(rows), np.int64)
        else:
            stride = 4 >> number
            known = np.flatnonzero(numbers < number)
            after = np.where(rows + stride < tokens, rows + stride, tokens)
            same, same_pair = (_nearest(keys, known, rows) for keys in (ids, pairs))
            sources = np.stack([rows - stride, after, same, same_pair])
            matches = (same < tokens).astype(np.int64) + (same_pair < tokens)
        yield CodingPass(
            number, torch.from_numpy(rows), SPANS[number], torch.from_numpy(sources), torch.from_numpy(matches)
        )


def _nearest(keys: Ints, known: Ints, rows: Ints) -> Ints:
    """Return for each row the nearest known token of the same key, the earlier of two as near; len(keys) if none."""
    tokens = len(keys)
    places = np.sort(keys[known] * (tokens + 1) + known)
    wanted = keys[rows] * (tokens + 1) + rows
    after = np.searchsorted(places, wanted)
    best, distance = np.full(len(rows), tokens), np.full(len(rows), tokens + 1)
    for candidate in (after - 1, after):
        inside = (candidate >= 0) & (candidate < len(places))
        place = places[np.clip(candidate, 0, max(0, len(places) - 1))] if len(places) else wanted
        inside &= place // (tokens + 1) == keys[rows]
        gap = np.abs(place - wanted)
        nearer = inside & (gap < distance)
        best, distance = np.where(nearer, place % (tokens + 1), best), np.where(nearer, gap, distance)
    return best
