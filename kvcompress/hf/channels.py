"""Snapshots as matrices: pre-RoPE keys and values of a group of layers, one row per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV

MAX_GROUP_CHANNELS = 4096
"""Wider groups would need transforms that grow with the square of the width."""


class Rope(Protocol):
    """Undoes and redoes the rotation of keys [H, T, D] at positions [T], in float32."""

    def undo(self, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
        """Return keys without the rotation."""
        ...

    def redo(self, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
        """Return keys with the rotation."""
        ...


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Heads and head sizes of one layer."""

    heads: int
    key_size: int
    value_size: int

    @property
    def channels(self) -> int:
        """Numbers a token adds to this layer's cache."""
        return self.heads * (self.key_size + self.value_size)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of what belongs together among the layer's channels: each head's keys, then each head's values."""
        return (self.key_size,) * self.heads + (self.value_size,) * self.heads


def layer_shapes(snapshot: KVSnapshot) -> tuple[LayerShape, ...]:
    """Return the shape of every layer."""
    return tuple(
        LayerShape(layer.keys.shape[0], layer.keys.shape[2], layer.values.shape[2]) for layer in snapshot.layers
    )


def group_layers(kinds: Sequence[str], shapes: Sequence[LayerShape], first: int = 0) -> tuple[tuple[int, ...], ...]:
    """Group neighbouring layers of one kind, at most `MAX_GROUP_CHANNELS` wide, from layer `first` on.

    Layers of a group share their tokens, so a sliding-window layer never meets a full one. Runs of layers that need
    several groups are cut evenly.

    Args:
        kinds: Kind of every layer, as in `Origin.layer_kinds`.
        shapes: Shape of every layer.
        first: The first layer that is grouped.
    """
    groups: list[tuple[int, ...]] = []
    run: list[int] = []
    for index in range(first, len(shapes)):
        if run and kinds[run[-1]] != kinds[index]:
            groups += _cut_run(run, shapes)
            run = []
        run.append(index)
    return tuple(groups + _cut_run(run, shapes))


def _cut_run(run: Sequence[int], shapes: Sequence[LayerShape]) -> list[tuple[int, ...]]:
    """Return the groups of neighbouring layers of one kind: as few as the width allows, and those about alike."""
    filled = _filled(run, shapes)
    each, longer = divmod(len(run), max(1, len(filled)))
    starts = [number * each + min(number, longer) for number in range(len(filled) + 1)]
    even = [tuple(run[start:end]) for start, end in pairwise(starts)]
    fits = all(sum(shapes[i].channels for i in group) <= MAX_GROUP_CHANNELS for group in even)
    return even if fits else filled


def _filled(run: Sequence[int], shapes: Sequence[LayerShape]) -> list[tuple[int, ...]]:
    """Fill groups one after another; a layer wider than the most is a group of its own."""
    groups: list[list[int]] = []
    for index in run:
        if groups and sum(shapes[i].channels for i in [*groups[-1], index]) <= MAX_GROUP_CHANNELS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [tuple(group) for group in groups]


def group_positions(snapshot: KVSnapshot, layers: Sequence[int]) -> Tensor:
    """Return the positions [T] shared by the layers of a group.

    Raises:
        InputError: The layers hold different tokens.
    """
    positions = snapshot.layers[layers[0]].positions
    for index in layers[1:]:
        if not torch.equal(snapshot.layers[index].positions, positions):
            raise InputError(
                f"layers {layers[0]} and {index} hold different tokens",
                "This codec needs the same tokens in all layers of a kind; use --lossless",
            )
    return positions


def to_channels(snapshot: KVSnapshot, layers: Sequence[int], rope: Rope) -> Tensor:
    """Return [T, C] float32: for each layer of the group its pre-RoPE keys, then its values."""
    return layer_channels(dict(enumerate(snapshot.layers)), layers, rope)


def layer_channels(held: Mapping[int, LayerKV], layers: Sequence[int], rope: Rope) -> Tensor:
    """Return the same of layers by index."""
    columns = []
    for index in layers:
        layer = held[index]
        keys = rope.undo(index, layer.keys, layer.positions)
        columns += [rows_of(keys), rows_of(layer.values.float())]
    return torch.cat(columns, 1)


def from_channels(
    channels: Tensor,
    layers: Sequence[int],
    shapes: Sequence[LayerShape],
    positions: Tensor,
    rope: Rope,
    dtype: str,
) -> dict[int, LayerKV]:
    """Return the layers of a group, RoPE applied, in the cache's dtype: the inverse of `to_channels`."""
    parts = torch.split(channels, [shapes[index].channels for index in layers], 1)
    return {
        index: layer_from_channels(part, index, shapes[index], positions, rope, dtype)
        for index, part in zip(layers, parts, strict=True)
    }


def layer_from_channels(
    channels: Tensor, layer: int, shape: LayerShape, positions: Tensor, rope: Rope, dtype: str
) -> LayerKV:
    """Return one layer from its channels [T, C], as `from_channels`."""
    keys, values = torch.split(channels, [shape.heads * shape.key_size, shape.heads * shape.value_size], 1)
    rotated = rope.redo(layer, _heads(keys, shape.heads, shape.key_size), positions)
    target = CACHE_DTYPES[dtype]
    values = _heads(values, shape.heads, shape.value_size)
    return LayerKV(rotated.to(target).contiguous(), values.to(target).contiguous(), positions)


def rows_of(heads: Tensor) -> Tensor:
    """Return keys or values of a layer [H, T, D] as rows of channels [T, H D]."""
    return rearrange(heads, "h t d -> t (h d)")


def _heads(channels: Tensor, heads: int, size: int) -> Tensor:
    """Return [heads, T, size], a view of channels [T, heads * size]."""
    return rearrange(channels, "t (h d) -> h t d", h=heads, d=size)
