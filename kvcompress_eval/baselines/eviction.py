"""Token eviction at equal bytes: what is kept is stored at 16 bits, the rest is gone.

A scorer says how much each token of each layer is worth; every layer keeps the same number of them. Papers choose for
each head; a snapshot holds its positions by layer, so scores are means over heads here. Kept tokens keep their
positions, and with them the angles of their keys.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.container import Encoded
from kvcompress.format.session import encoded_session, own_sections, read_session
from kvcompress.hf.channels import LayerShape, layer_shapes
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV
from kvcompress_eval.baselines.raw16 import from_16_bits, stored_dtype, stored_in, to_16_bits

KEEP_FRACTIONS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
FEWEST_TOKENS = 5
"""Kept of any session that has them: four sinks and the newest token."""

_SHAPE = struct.Struct("<HHH")


class Scorer(Protocol):
    """Says how much each token is worth."""

    name: str

    def score(self, snapshot: KVSnapshot, kept_tokens: int) -> list[Tensor]:
        """Return for each layer the worth [T] float of its tokens, infinite where they must stay.

        Args:
            snapshot: All tokens.
            kept_tokens: How many will be kept.
        """
        ...


class Eviction:
    """One keep fraction of one scorer.

    Args:
        scorer: Ranks the tokens.
        keep_fraction: Share of each layer's tokens to keep, in (0, 1].
    """

    codec_bytes = 0
    fingerprint = ""

    def __init__(self, scorer: Scorer, keep_fraction: float) -> None:
        if not 0 < keep_fraction <= 1:
            raise InputError(f"a keep fraction of {keep_fraction} is not above 0 and at most 1")
        self.scorer, self.keep_fraction = scorer, keep_fraction
        self.family = self.kind = scorer.name
        self.name = f"{scorer.name}-1/{1 / keep_fraction:g}"

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Keep the tokens of most worth; the header counts the raw bytes of all of them.

        Raises:
            InputError: A layer has a sliding window, which may not be pruned.
        """
        pruned = self.prune(snapshot)
        shapes = b"".join(_SHAPE.pack(s.heads, s.key_size, s.value_size) for s in layer_shapes(snapshot))
        stored = stored_dtype(pruned)
        own = {"shapes": shapes, "cache": pack_kept(pruned.layers, stored)}
        settings = {"keep_fraction": self.keep_fraction, "stored": stored}
        encoded = encoded_session(self.kind, self.fingerprint, pruned, settings, own)
        return dataclasses.replace(encoded, raw_bytes=snapshot.raw_bytes)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the kept tokens at their original positions.

        Raises:
            MismatchError: Another codec made it.
            FormatError: A section is missing, cut or inconsistent.
        """
        require_own(encoded, self.kind, self.fingerprint, ("shapes", "cache"))
        token_ids, origin, positions = read_session(encoded)
        if len(encoded.sections["shapes"]) != _SHAPE.size * len(positions):
            raise FormatError(f"the section 'shapes' is not that of {len(positions)} layers")
        shapes = [LayerShape(*sizes) for sizes in _SHAPE.iter_unpack(encoded.sections["shapes"])]
        stored = stored_in(encoded, origin)
        layers = unpack_kept(encoded.sections["cache"], stored, shapes, positions, origin.dtype)
        return KVSnapshot(tuple(layers), token_ids, origin)

    @torch.inference_mode()
    def prune(self, snapshot: KVSnapshot) -> KVSnapshot:
        """Return the snapshot without the tokens of least worth."""
        for index, kind in enumerate(snapshot.origin.layer_kinds):
            if kind != "full_attention":
                what = f"layer {index} has a sliding window, of which the mask counts on every token"
                raise InputError(what, "Drop tokens in layers with full attention only")
        kept_counts = [keep_count(len(layer.positions), self.keep_fraction) for layer in snapshot.layers]
        scores = self.scorer.score(snapshot, min(kept_counts, default=0))
        layers = []
        for layer, score, kept_tokens in zip(snapshot.layers, scores, kept_counts, strict=True):
            layers.append(select(layer, best_tokens(score, kept_tokens)))
        return KVSnapshot(tuple(layers), snapshot.token_ids, snapshot.origin)


def require_own(encoded: Encoded, kind: str, fingerprint: str, own: Sequence[str]) -> None:
    """Raise `MismatchError` or `FormatError` unless a codec made this, with exactly the sections that it knows."""
    if (encoded.codec, encoded.codec_fingerprint) != (kind, fingerprint):
        made, wanted = f"{encoded.codec} {encoded.codec_fingerprint[:16]}", f"{kind} {fingerprint[:16]}"
        raise MismatchError("the codec", made.strip(), wanted.strip(), "Decode it with the codec that made it")
    odd = sorted(own_sections(encoded) ^ set(own))
    if odd:
        raise FormatError(f"the sections are not those of the codec {kind!r}: {', '.join(odd)}")


def points(scorer: Scorer) -> list[Eviction]:
    """Return a scorer at each keep fraction."""
    return [Eviction(scorer, keep_fraction) for keep_fraction in KEEP_FRACTIONS]


def keep_count(tokens: int, keep_fraction: float) -> int:
    """Return how many of a layer's tokens stay."""
    return min(tokens, max(FEWEST_TOKENS, math.ceil(keep_fraction * tokens)))


def best_tokens(score: Tensor, count: int) -> Tensor:
    """Return the indices [count] int64 of the highest scores [T], in order; of equal ones the newest."""
    ranked = torch.sort(score.flip(0), descending=True, stable=True).indices
    return (len(score) - 1 - ranked[:count]).sort().values


def select(layer: LayerKV, index: Tensor) -> LayerKV:
    """Return the tokens of a layer at `index` [n] int64, at their own positions."""
    return LayerKV(layer.keys[:, index], layer.values[:, index], layer.positions[index])


def pack_kept(layers: Sequence[LayerKV], stored: str) -> bytes:
    """Return keys and values of each layer in turn, [H, T, D], in the 16-bit dtype `stored`."""
    return b"".join(to_16_bits(part.detach().cpu(), stored) for kv in layers for part in (kv.keys, kv.values))


def unpack_kept(
    data: bytes, stored: str, shapes: Sequence[LayerShape], positions: Sequence[Tensor], dtype: str
) -> list[LayerKV]:
    """Return the layers that `pack_kept` stored.

    Args:
        data: What it returned.
        stored: The dtype it was given.
        shapes: For each layer its heads and head sizes.
        positions: For each layer [T] int64.
        dtype: The cache's dtype.

    Raises:
        FormatError: There are more or fewer bytes than these layers have.
    """
    size_bytes = sum(2 * shape.channels * len(place) for shape, place in zip(shapes, positions, strict=True))
    if len(data) != size_bytes:
        raise FormatError(f"{len(data)} bytes of kept tokens instead of {size_bytes}")
    start, layers = 0, []
    for shape, place in zip(shapes, positions, strict=True):
        tensors = []
        for size in (shape.key_size, shape.value_size):
            end = start + 2 * shape.heads * len(place) * size
            kept = from_16_bits(data[start:end], stored, (shape.heads, len(place), size))
            tensors.append(kept.to(CACHE_DTYPES[dtype]))
            start = end
        layers.append(LayerKV(tensors[0], tensors[1], place.clone()))
    return layers
