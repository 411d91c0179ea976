"""Exact tokens: cache entries stored unchanged, which replace what the codec decodes.

A file of any codec may have one section more, `exact`: the positions of some tokens and their keys and values in the
cache's own data type, without loss. The codec never sees it: it is taken off before decoding and laid over the result.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.lossless import pack_cache, unpack_cache, unpacking_bytes
from kvcompress.codec.protocol import Codec
from kvcompress.errors import FormatError
from kvcompress.format.container import Encoded
from kvcompress.format.limits import require_memory
from kvcompress.format.positions import pack_positions, read_positions
from kvcompress.format.reader import Reader
from kvcompress.format.session import POSITION_BYTES, position_tensors
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV

EXACT = "exact"

_LENGTH = struct.Struct("<I")


def only(snapshot: KVSnapshot, wanted: Tensor) -> KVSnapshot:
    """Return a snapshot whose layers hold no tokens but those of `wanted` [N] bool, at their own positions."""
    layers = []
    for layer in snapshot.layers:
        index = torch.nonzero(wanted[layer.positions])[:, 0]
        layers.append(LayerKV(layer.keys[:, index], layer.values[:, index], layer.positions[index]))
    return KVSnapshot(tuple(layers), snapshot.token_ids, snapshot.origin)


def with_exact(encoded: Encoded, snapshot: KVSnapshot, wanted: Tensor) -> Encoded:
    """Return a file that gives the tokens of `wanted` [N] bool back bit by bit; the same file where there are none."""
    if not bool(wanted.any()):
        return encoded
    chosen = only(snapshot, wanted)
    positions = pack_positions([layer.positions.tolist() for layer in chosen.layers])
    section = _LENGTH.pack(len(positions)) + positions + pack_cache(chosen)
    return replace(encoded, sections={**encoded.sections, EXACT: section})


def without_exact(encoded: Encoded) -> Encoded:
    """Return a file as its codec made it."""
    return replace(encoded, sections={name: data for name, data in encoded.sections.items() if name != EXACT})


def exact_layers(encoded: Encoded, decoded: KVSnapshot) -> tuple[LayerKV, ...]:
    """Return the exact tokens of a file, layer by layer; nothing where it has none.

    Args:
        encoded: The file.
        decoded: What its codec makes of the rest: whose layers, and which tokens they hold.

    Raises:
        FormatError: The section is damaged or does not fit.
    """
    if EXACT not in encoded.sections:
        return ()
    reader = Reader(encoded.sections[EXACT], f"the section {EXACT!r}")
    listed = read_positions(reader.block(), decoded.tokens, len(decoded.layers))
    if len(listed.layers) != len(decoded.layers):
        raise FormatError(f"the section {EXACT!r} has {len(listed.layers)} layers, the file {len(decoded.layers)}")
    shapes = [(len(layer.keys), layer.keys.shape[2], layer.values.shape[2]) for layer in decoded.layers]
    item, held = CACHE_DTYPES[decoded.origin.dtype].itemsize, listed.held
    values = sum(h * count * (k + v) for (h, k, v), count in zip(shapes, held, strict=True))
    working = unpacking_bytes(shapes, decoded.origin, held)
    whole = (2 * decoded.values_count + values) * item + POSITION_BYTES * sum(held)
    require_memory(whole + working, f"laying {max(held, default=0):,} exact tokens over the others")
    positions = position_tensors(listed)
    for index, (places, layer) in enumerate(zip(positions, decoded.layers, strict=True)):
        if not bool(torch.isin(places, layer.positions).all()):
            raise FormatError(f"the section {EXACT!r} names a token that layer {index} does not hold")
    return unpack_cache(reader.rest(), decoded.origin, positions, shapes)


def overlay(decoded: KVSnapshot, exact: tuple[LayerKV, ...]) -> KVSnapshot:
    """Return a decoded snapshot whose tokens that `exact` holds are those; the same one where it holds none."""
    if not exact:
        return decoded
    layers = []
    for layer, true in zip(decoded.layers, exact, strict=True):
        rows = torch.searchsorted(layer.positions, true.positions)
        keys, values = layer.keys.clone(), layer.values.clone()
        keys[:, rows], values[:, rows] = true.keys, true.values
        layers.append(LayerKV(keys, values, layer.positions))
    return KVSnapshot(tuple(layers), decoded.token_ids, decoded.origin)


class WithExact:
    """A codec that decodes exact tokens too.

    Args:
        codec: The codec of everything else; all of it is reachable here.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec, self.kind = codec, codec.kind

    @property
    def fingerprint(self) -> str:
        """The codec's fingerprint."""
        return self.codec.fingerprint

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot, its exact tokens laid over; raises as the codec's `decode` does."""
        decoded = self.codec.decode(without_exact(encoded))
        return overlay(decoded, exact_layers(encoded, decoded))

    def __getattr__(self, name: str) -> Any:
        """Pass on what the codec offers beyond decoding."""
        return getattr(self.codec, name)
