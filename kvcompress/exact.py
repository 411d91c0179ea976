"""Exact tokens: numbers stored as they are, laid over what any codec decodes.

A file of any codec may have one section more, `exact`: the positions of some tokens and their keys and values in the
cache's own data type, without loss. The codec never sees it: it is taken off before decoding and laid over the result.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec import Codec
from kvcompress.container import Encoded
from kvcompress.errors import FormatError
from kvcompress.lossless import LosslessCodec
from kvcompress.sections import read_session, session_sections
from kvcompress.snapshot import KVSnapshot, LayerKV

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
    positions = session_sections(chosen)["positions"]
    cache = LosslessCodec().encode(chosen).sections["cache"]
    section = _LENGTH.pack(len(positions)) + positions + cache
    return replace(encoded, sections={**encoded.sections, EXACT: section})


def without_exact(encoded: Encoded) -> Encoded:
    """Return a file as its codec made it."""
    return replace(encoded, sections={name: data for name, data in encoded.sections.items() if name != EXACT})


def exact_part(encoded: Encoded) -> KVSnapshot | None:
    """Return the exact tokens of a file, None where it has none.

    Raises:
        FormatError: The section is damaged.
    """
    if EXACT not in encoded.sections:
        return None
    data = encoded.sections[EXACT]
    if len(data) < _LENGTH.size:
        raise FormatError(f"the section {EXACT!r} is cut")
    (length,) = _LENGTH.unpack_from(data)
    _, origin, whole = read_session(encoded)
    if len(data) < _LENGTH.size + length or len(whole) != len(origin.layer_kinds):
        raise FormatError(f"the section {EXACT!r} is cut")
    start = _LENGTH.size + length
    sections = {name: encoded.sections[name] for name in ("tokens", "origin")}
    sections |= {"positions": data[_LENGTH.size : start], "cache": data[start:]}
    shell = replace(encoded, codec=LosslessCodec.kind, codec_fingerprint="", settings={}, sections=sections)
    _, _, places = read_session(shell)
    # The lossless codec wants the raw bytes of what it holds, which shapes and positions give.
    found = LosslessCodec().decode(replace(shell, raw_bytes=_raw_bytes(data[start:], places)))
    for index, (layer, held) in enumerate(zip(found.layers, whole, strict=True)):
        if not bool(torch.isin(layer.positions, held).all()):
            raise FormatError(f"the section {EXACT!r} names a token that layer {index} does not hold")
    return found


def _raw_bytes(cache: bytes, places: list[Tensor]) -> int:
    """Return the raw bytes that the shapes at the front of a lossless cache claim."""
    shape, offset, total = struct.Struct("<HHH"), struct.calcsize("<I"), 0
    for place in places:
        if len(cache) < offset + shape.size:
            raise FormatError(f"the section {EXACT!r} is cut")
        heads, key_size, value_size = shape.unpack_from(cache, offset)
        total += 2 * heads * len(place) * (key_size + value_size)
        offset += shape.size
    return total


def overlay(decoded: KVSnapshot, exact: KVSnapshot) -> KVSnapshot:
    """Return a decoded snapshot whose tokens of `exact` are those."""
    layers = []
    for index, (layer, true) in enumerate(zip(decoded.layers, exact.layers, strict=True)):
        if layer.keys.shape[::2] != true.keys.shape[::2] or layer.values.shape[::2] != true.values.shape[::2]:
            raise FormatError(f"the section {EXACT!r}: layer {index} has another shape than its codec's")
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
        decoded, exact = self.codec.decode(without_exact(encoded)), exact_part(encoded)
        return decoded if exact is None else overlay(decoded, exact)

    def __getattr__(self, name: str) -> Any:
        """Pass on what the codec offers beyond decoding."""
        return getattr(self.codec, name)
