"""The lossless codec: byte planes compressed with zstd.

The sign, the exponent and the first bits of the mantissa share the highest byte of a number. Those bytes repeat, the
lower ones hardly do; kept apart, each plane is coded with statistics of its own, and a plane of noise is stored as is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from kvcompress.codec.settings import NOTHING_STATED, CommonSettings
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.container import Encoded
from kvcompress.format.default_device import on_cpu
from kvcompress.format.reader import Reader
from kvcompress.format.session import encoded_session, own_sections, read_session
from kvcompress.format.zstd_frame import most_content_bytes, zstd_pack
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV, Origin

# Measured on caches of two small Llama-type models (400 and 800 tokens of dialogue), raw bytes by coded bytes:
#   bfloat16, level 15: interleaved 1.36; planes [H, T, D] 1.59-1.60; planes token by token [T, H, D] 1.61-1.62.
#   Not better: transposed to channels 1.44-1.56, sign rotated to the lowest bit 1.52-1.60, differences or XOR along
#   the tokens 1.40-1.49, all planes of a tensor in one frame 1.52-1.55.
#   Level 9 gives 1.55 at 40 MB/s, 15 gives 1.62 at 9 MB/s, 19 gives 1.62 at 4 MB/s (one core).
#   float16 gives 1.25-1.27, float32 1.28-1.29: their mantissas are noise.
LEVEL = 15
MAX_CACHE_BYTES = 64 << 30

Shape = tuple[int, int, int]
"""Heads, size of a key, size of a value."""

_COUNT = struct.Struct("<I")
_SHAPE = struct.Struct("<HHH")
_LENGTH = struct.Struct("<Q")
_SECTIONS = {"cache"}


class LosslessCodec:
    """Codes any snapshot, without weights and without loss."""

    kind = "lossless"
    fingerprint = ""

    @on_cpu
    def encode(self, snapshot: KVSnapshot, settings: CommonSettings = NOTHING_STATED) -> Encoded:
        """Code a snapshot.

        Raises:
            InputError: The session does not fit the format.
        """
        own = {"cache": pack_cache(snapshot)}
        return encoded_session(self.kind, self.fingerprint, snapshot, settings.to_json(), own)

    @on_cpu
    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot that was coded, bit by bit.

        Raises:
            MismatchError: Another codec made it.
            FormatError: A section is missing, damaged or unknown, or contradicts another or the header.
            InputError: What was coded is no valid snapshot.
        """
        if encoded.codec != self.kind:
            raise MismatchError("the codec", encoded.codec, self.kind, "Decode it with the codec that made it")
        unknown = sorted(own_sections(encoded) - _SECTIONS)
        if unknown:
            raise FormatError(f"the section {unknown[0]!r} is unknown to the lossless codec")
        if "cache" not in encoded.sections:
            raise FormatError("the section 'cache' is missing")
        cache, found = encoded.sections["cache"], list[Shape]()
        if encoded.raw_bytes > most_content_bytes(len(cache)):
            what = f"the header counts {encoded.raw_bytes} raw bytes, more than {len(cache)} bytes of 'cache' can hold"
            raise FormatError(what)

        def working_bytes(origin: Origin, held: Sequence[int]) -> int:
            found.extend(read_shapes(_reader(cache), origin, held, encoded.raw_bytes))
            return unpacking_bytes(found, origin, held)

        token_ids, origin, positions = read_session(encoded, decoding_bytes=working_bytes)
        return KVSnapshot(unpack_cache(cache, origin, positions, found), token_ids, origin)


def pack_cache(snapshot: KVSnapshot) -> bytes:
    """Return keys and values of all layers, without loss: the section "cache".

    Raises:
        InputError: A shape or the whole is too large for the format.
    """
    return b"".join(_cache_chunks(snapshot))


def unpack_cache(
    data: bytes, origin: Origin, positions: Sequence[Tensor], wanted: Sequence[Shape]
) -> tuple[LayerKV, ...]:
    """Return the layers that `pack_cache` packed.

    Args:
        data: What it returned.
        origin: Of the snapshot; says how many layers there are and in which data type.
        positions: For each layer [T] int64, those that were packed.
        wanted: For each layer heads, key size and value size; others are refused.

    Raises:
        FormatError: The data are damaged or do not fit the positions.
    """
    reader = _reader(data)
    shapes = read_shapes(reader, origin, [len(place) for place in positions])
    for index, (shape, other) in enumerate(zip(shapes, wanted, strict=True)):
        if shape != other:
            raise FormatError(f"the section 'cache': layer {index} has the shape {shape} instead of {other}")
    dtype = CACHE_DTYPES[origin.dtype]
    layers = []
    for (heads, key_size, value_size), place in zip(shapes, positions, strict=True):
        keys = _read_tensor(reader, (heads, len(place), key_size), dtype)
        values = _read_tensor(reader, (heads, len(place), value_size), dtype)
        layers.append(LayerKV(keys, values, place))
    reader.require_end()
    return tuple(layers)


def _cache_chunks(snapshot: KVSnapshot) -> Iterator[bytes]:
    """Yield the section "cache": the number of layers, their shapes, then the planes of keys and values in turn."""
    yield _COUNT.pack(len(snapshot.layers))
    for index, layer in enumerate(snapshot.layers):
        shape = (layer.keys.shape[0], layer.keys.shape[2], layer.values.shape[2])
        if max(shape) > 0xFFFF:
            raise InputError(f"layer {index}: heads and head sizes {shape} are more than 65535")
        yield _SHAPE.pack(*shape)
    if _item_bytes(snapshot.origin) * snapshot.values_count > MAX_CACHE_BYTES:
        raise InputError(f"a cache of more than {MAX_CACHE_BYTES} bytes does not fit the format")
    for layer in snapshot.layers:
        for tensor in (layer.keys, layer.values):
            for plane in _planes(tensor):
                frame = zstd_pack(plane, LEVEL)
                yield _LENGTH.pack(len(frame))
                yield frame


def _planes(tensor: Tensor) -> list[bytes]:
    """Return the byte planes of a tensor [H, T, D], least significant byte first, token by token."""
    numbers = rearrange(tensor.detach().cpu(), "h t d -> (t h d)")
    split = numbers.view(torch.uint8).numpy().reshape(numbers.numel(), tensor.element_size())
    return [split[:, index].tobytes() for index in range(split.shape[1])]


def read_shapes(reader: Reader, origin: Origin, held: Sequence[int], raw_bytes: int | None = None) -> list[Shape]:
    """Read each layer's heads, key size and value size; all sizes are settled here, before anything is allocated.

    Args:
        reader: Of the section, at its start.
        origin: Of the snapshot.
        held: For each layer the number of its tokens.
        raw_bytes: What another place says of their size at 16 bits a number, if one does.

    Raises:
        FormatError: They are cut, or contradict what is known.
    """
    count = reader.u32()
    if count != len(held):
        raise FormatError(f"the section 'cache' has {count} layers, the section 'positions' {len(held)}")
    shapes, values_count = list[Shape](), 0
    for tokens in held:
        heads, key_size, value_size = reader.fields(_SHAPE)
        shapes.append((heads, key_size, value_size))
        values_count += heads * tokens * (key_size + value_size)
    if raw_bytes is not None and 2 * values_count != raw_bytes:
        raise FormatError(f"the header counts {raw_bytes} raw bytes, the shapes in 'cache' {2 * values_count}")
    if _item_bytes(origin) * values_count > MAX_CACHE_BYTES:
        raise FormatError(f"the section 'cache' claims more than {MAX_CACHE_BYTES} bytes")
    return shapes


def _read_tensor(reader: Reader, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Read the planes of one tensor and return it, [H, T, D] of `dtype`."""
    heads, tokens, size = shape
    count = heads * tokens * size
    planes = [np.frombuffer(reader.frame(_LENGTH, count), dtype=np.uint8) for _ in range(dtype.itemsize)]
    numbers = torch.from_numpy(np.stack(planes, axis=1).reshape(-1)).view(dtype)
    return rearrange(numbers, "(t h d) -> h t d", t=tokens, h=heads, d=size).contiguous()


def unpacking_bytes(shapes: Sequence[Shape], origin: Origin, held: Sequence[int]) -> int:
    """Return the memory that unpacking takes beside the layers themselves: the planes of the largest tensor, twice."""
    largest = max((h * t * max(k, v) for (h, k, v), t in zip(shapes, held, strict=True)), default=0)
    return 2 * largest * _item_bytes(origin)


def _reader(data: bytes) -> Reader:
    return Reader(data, "the section 'cache'")


def _item_bytes(origin: Origin) -> int:
    return CACHE_DTYPES[origin.dtype].itemsize
