"""The token table of a codec's prior: from means per token id, or from the model's own embeddings.

Means need many occurrences of each id; where the vocabulary is large beside the sessions, most ids are never seen, and
what the model itself makes of each id, its embedding, tells more. Statistics stay small: means in a sketch of the
channels (a random projection keeps distances, Johnson and Lindenstrauss), embeddings through one regression a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvcompress.hf.channels import Rope
from tinyvae.fit.moments import TokenMeans

if TYPE_CHECKING:
    from kvcompress.data.shards import Shards
    from kvcompress.fit.closed_form import Group

TOKENS_AN_ID = 8
"""Tokens for each id of the vocabulary from which on means pay."""

SKETCH_CHANNELS = 2048
"""More channels than these are projected to half as many numbers."""

REGRESSION_SESSIONS = 24
ROWS_AT_ONCE = 8192
RIDGE = 1e-3

Progress = Callable[[str, int, int], None]


def table_pays(tokens: int, vocab_size: int) -> bool:
    """Tell whether the sessions hold enough tokens for means of token ids."""
    return tokens >= TOKENS_AN_ID * vocab_size


def mean_table(
    shards: Shards,
    groups: Sequence[Group],
    scales: Sequence[Tensor],
    columns: int,
    rope: Rope,
    sink: bool,
    progress: Progress,
) -> Tensor:
    """Return a token table [V, columns] float32 of the leading directions of the means of token ids.

    Args:
        shards: Sessions to fit to.
        groups: Groups of layers.
        scales: Of each group [C], root of the weight of its channels.
        columns: r.
        rope: Rotation of the keys.
        sink: Whether place 0 is left out.
        progress: Called after each session.
    """
    channels = sum(len(scale) for scale in scales)
    every = torch.cat([shards.token_ids(number) for number in range(len(shards))])
    seen = every.bincount().nonzero()[:, 0]
    sketch = _sketch(channels)
    means = TokenMeans.empty(seen, channels if sketch is None else sketch.shape[1])
    for number in range(len(shards)):
        parts = []
        for group, scale in zip(groups, scales, strict=True):
            ids, places, rows = shards.channels(number, group.layers, rope)
            whole = torch.zeros(len(ids), rows.shape[1], dtype=torch.float32).index_copy_(0, places, rows * scale)
            parts.append(whole)
        rows = torch.cat(parts, 1)
        rows = rows if sketch is None else rows @ sketch
        means.add(ids[int(sink) :], rows[int(sink) :])
        progress("token means", number + 1, len(shards))
    return means.table(len(shards.embeddings()), columns, torch.ones(means.sums.shape[1], dtype=torch.float32))


def _sketch(channels: int) -> Tensor | None:
    """Return a random projection [channels, S], None where it would save nothing."""
    if channels <= SKETCH_CHANNELS:
        return None
    width = SKETCH_CHANNELS // 2
    drawn: Tensor = torch.randn(channels, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    found: Tensor = drawn / width**0.5
    return found


def embedding_table(
    shards: Shards,
    groups: Sequence[Group],
    scales: Sequence[Tensor],
    columns: int,
    rope: Rope,
    sink: bool,
    progress: Progress,
) -> Tensor:
    """Return a token table [V, columns] float32: the directions of the embeddings that tell most of the channels.

    Arguments as `mean_table`.
    """
    embeddings = shards.embeddings()
    chosen = range(min(len(shards), REGRESSION_SESSIONS))
    size = embeddings.shape[1]
    gram, total, mean, told = (
        torch.zeros(size, size, dtype=torch.float32),
        0,
        torch.zeros(size, dtype=torch.float32),
        torch.zeros(size, size, dtype=torch.float32),
    )
    scale = float(embeddings[:ROWS_AT_ONCE].float().std().clamp(min=1e-12))
    for number in chosen:
        rows = embeddings[shards.token_ids(number)[int(sink) :]].float() / scale
        gram, mean, total = gram + rows.T @ rows, mean + rows.sum(0), total + len(rows)
    mean = mean / max(total, 1)
    spread = (gram / max(total, 1) - torch.outer(mean, mean)).double()
    spread += RIDGE * spread.diagonal().mean() * torch.eye(size, dtype=spread.dtype)
    root = torch.linalg.cholesky(spread)
    for done, (group, weight) in enumerate(zip(groups, scales, strict=True), 1):
        told += _told(shards, chosen, group, weight, embeddings, mean, scale, rope, sink, root).float()
        progress("embeddings", done, len(groups))
    _, vectors = torch.linalg.eigh(told.double())
    basis = torch.linalg.solve(root.T, vectors[:, -min(columns, size) :].flip(1)).float()
    parts = [(part.float() / scale - mean) @ basis for part in torch.split(embeddings, ROWS_AT_ONCE)]
    return torch.cat(parts)


def _told(
    shards: Shards,
    chosen: Sequence[int],
    group: Group,
    weight: Tensor,
    embeddings: Tensor,
    mean: Tensor,
    scale: float,
    rope: Rope,
    sink: bool,
    root: Tensor,
) -> Tensor:
    """Return [E, E] float64: how much each whitened direction of the embeddings tells of a group's channels."""
    cross, tokens = torch.zeros(embeddings.shape[1], len(weight), dtype=torch.float32), 0
    for number in chosen:
        ids, places, channels = shards.channels(number, group.layers, rope)
        keep = places >= int(sink)
        rows = embeddings[ids[places[keep]]].float() / scale - mean
        cross += rows.T @ (channels[keep] * weight)
        tokens += len(rows)
    whitened = torch.linalg.solve_triangular(root, cross.double() / max(tokens, 1), upper=False)
    told: Tensor = whitened @ whitened.T
    return told
