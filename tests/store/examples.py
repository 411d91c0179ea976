"""Small caches with values of their own: what a store does with them does not depend on where they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin

LAYERS, HEADS, SIZE = 2, 1, 4


def origin(tokens: int, model: str = "a", kinds: tuple[str, ...] = ("full_attention",) * LAYERS) -> Origin:
    fingerprint = ModelFingerprint(config=model * 64, weights="b" * 64, rope="c" * 64)
    return Origin(fingerprint, "llama", "tiny", {}, "float32", kinds, (True,) * len(kinds), tokens)


def snapshot_of(ids: Tensor, model: str = "a", size: int = SIZE) -> KVSnapshot:
    """A cache in which each token's keys and values are told by its id and its place; wide ones are noise."""
    places = torch.arange(len(ids))
    numbers = (ids * 31 + places * 7)[None, :, None].float() + torch.arange(size)
    if size > SIZE:
        numbers = torch.randn(1, len(ids), size, generator=torch.Generator().manual_seed(int(ids.sum())))
    layers = tuple(LayerKV(numbers * (index + 1), -numbers * (index + 1), places) for index in range(LAYERS))
    return KVSnapshot(layers, ids, origin(len(ids), model))


def ids_of(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 90, (tokens,), generator=torch.Generator().manual_seed(seed))


def same(one: KVSnapshot, other: KVSnapshot) -> bool:
    """Whether two snapshots are equal bit by bit."""
    layers = zip(one.layers, other.layers, strict=True)
    alike = all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in layers for name in ("keys", "values", "positions")
    )
    return alike and torch.equal(one.token_ids, other.token_ids) and one.origin == other.origin
