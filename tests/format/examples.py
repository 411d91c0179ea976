"""Small caches made of bit patterns, the same on every machine and with every version of torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvcompress.prune.evidence.record import Evidence, QueryStatistics
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV, ModelFingerprint, Origin

DTYPES = tuple(CACHE_DTYPES)
BITS = {"float32": torch.int32, "bfloat16": torch.int16, "float16": torch.int16}
FRACTION = {"float32": 23, "bfloat16": 7, "float16": 10}


def patterns(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    """Return a finite tensor of arbitrary bits; where there is room it begins with 0, -0.0 and subnormals."""
    count = int(torch.Size(shape).numel())
    width = 8 * CACHE_DTYPES[dtype].itemsize
    bits = (torch.arange(count) + seed) * 2654435761 % 2**width
    bits &= ~(1 << FRACTION[dtype])  # an exponent with a zero in it is neither infinity nor NaN
    special = torch.tensor([0, 1 << (width - 1), 1, (1 << (width - 1)) + 3], dtype=torch.int64)[:count]
    bits[: len(special)] = special
    bits = torch.where(bits >= 2 ** (width - 1), bits - 2**width, bits)
    return bits.to(BITS[dtype]).view(CACHE_DTYPES[dtype]).reshape(shape)


def make_origin(layers: int, dtype: str, tokens: int, **changes: Any) -> Origin:
    """Return an origin of hashes that are no hashes of anything."""
    fields: dict[str, Any] = {
        "fingerprint": ModelFingerprint(config="c" * 64, weights="0123456789abcdef" * 4, rope="e" * 64),
        "model_type": "llama",
        "model_name": "tiny",
        "config": {"hidden_size": 8, "rope_parameters": {"rope_theta": 10000.0}, "label": "naïve"},
        "dtype": dtype,
        "layer_kinds": ("full_attention",) * layers,
        "rope_layers": (True,) * layers,
        "next_position": tokens,
    }
    return Origin(**fields | changes)


def make_snapshot(
    tokens: int = 5,
    dtype: str = "bfloat16",
    shapes: Sequence[tuple[int, int, int]] = ((2, 4, 4), (2, 4, 6)),
    dropped: Sequence[int] = (0, 2),
    seed: int = 0,
) -> KVSnapshot:
    """Return a snapshot of layers with `shapes` (heads, key size, value size), the first `dropped` tokens gone."""
    layers = []
    for index, (heads, key_size, value_size) in enumerate(shapes):
        positions = torch.arange(min(tokens, dropped[index]), tokens)
        kept = len(positions)
        keys = patterns((heads, kept, key_size), dtype, seed + 7 * index)
        layers.append(LayerKV(keys, patterns((heads, kept, value_size), dtype, seed + 100 + index), positions))
    token_ids = (torch.arange(tokens) * 7919 + seed) % 4096
    return KVSnapshot(tuple(layers), token_ids, make_origin(len(layers), dtype, tokens))


def require_identical(found: KVSnapshot, wanted: KVSnapshot) -> None:
    """Assert that two snapshots agree in every bit."""
    assert json.dumps(found.origin.to_json(), sort_keys=True) == json.dumps(wanted.origin.to_json(), sort_keys=True)
    assert found.token_ids.dtype == wanted.token_ids.dtype
    assert torch.equal(found.token_ids, wanted.token_ids)
    assert len(found.layers) == len(wanted.layers)
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert torch.equal(one.positions, other.positions)
        for mine, theirs in ((one.keys, other.keys), (one.values, other.values)):
            assert mine.dtype == theirs.dtype
            assert mine.shape == theirs.shape
            bits = BITS[wanted.origin.dtype]
            assert torch.equal(mine.contiguous().view(bits), theirs.contiguous().view(bits))


def make_evidence(heads: int = 4) -> Evidence:
    """Return evidence of that snapshot, every number an exact fraction, the same everywhere."""
    snapshot = make_snapshot()
    tokens, sizes = snapshot.tokens, [layer.keys.shape[2] for layer in snapshot.layers]

    def fractions(*shape: int) -> Tensor:
        return torch.arange(int(torch.Size(shape).numel()), dtype=torch.float32).reshape(shape) / 64

    return Evidence(
        snapshot,
        surprise=fractions(tokens),
        window_attention=tuple(fractions(heads, tokens) for _ in sizes),
        queries=tuple(QueryStatistics(fractions(heads, d), fractions(heads, d, d), d**-0.5) for d in sizes),
        reconstruction=tuple(1 - fractions(heads, tokens) for _ in sizes),
        sensitivity=1 + fractions(tokens),
        ages_seconds=60 * fractions(tokens).flip(0),
    )
