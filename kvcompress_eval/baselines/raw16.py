"""The cache as it is, 16 bits a value, and what all quantising baselines share: tensors out of a snapshot and back.

A bfloat16 or float16 cache is stored bit by bit. The raw size of a float32 cache is counted at 2 bytes a value as well,
so it is rounded here: to float16, which keeps three more bits than bfloat16, or, where a value is beyond float16, to
bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kvcompress.codec.int8 import shapes_of_runs
from kvcompress.codec.settings import runs_of
from kvcompress.errors import FormatError, MismatchError
from kvcompress.format.container import Encoded
from kvcompress.format.reader import Reader
from kvcompress.format.session import encoded_session, own_sections, read_session
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV, Origin
from kvcompress_eval.baselines.bitpacking import MOST_FLOAT16, Reals
from kvcompress_eval.baselines.protocol import Baseline, Calibration

Shape = tuple[int, int, int]


class Named(Protocol):
    """What opening and closing a file needs to know of a baseline."""

    kind: str

    @property
    def fingerprint(self) -> str:
        """The codec's fingerprint."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What tells this baseline from others of its kind, JSON-able."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What every baseline's file says of the session.

    Attributes:
        token_ids: [N] int64.
        origin: The snapshot's origin.
        positions: For each layer its positions [T] int64.
        shapes: [heads, tokens, size] of each tensor: keys and values of each layer in turn.
    """

    token_ids: Tensor
    origin: Origin
    positions: list[Tensor]
    shapes: list[Shape]


def cache_tensors(snapshot: KVSnapshot) -> list[Tensor]:
    """Return keys [H, T, D] and values [H, T, Dv] of each layer in turn, on the CPU, in the cache's dtype."""
    return [part.detach().cpu() for layer in snapshot.layers for part in (layer.keys, layer.values)]


def as_reals(tensor: Tensor) -> Reals:
    """Return a tensor as float64, which holds every cache dtype exactly."""
    numbers: Reals = tensor.double().numpy()
    return numbers


def closed(baseline: Named, snapshot: KVSnapshot, own: Mapping[str, bytes], **settings: Any) -> Encoded:
    """Return what a baseline makes of a snapshot; the settings gain the shapes, as runs of [layers, heads, D, Dv]."""
    layers = [(layer.keys.shape[0], layer.keys.shape[2], layer.values.shape[2]) for layer in snapshot.layers]
    runs = [[len(list(run)), *shape] for shape, run in groupby(layers)]
    stated = {**baseline.settings, **settings, "shapes": runs}
    return encoded_session(baseline.kind, baseline.fingerprint, snapshot, stated, own)


def opened(baseline: Named, encoded: Encoded, sections: Sequence[str]) -> Opened:
    """Read the session's part of a baseline's file and settle every size, before anything is allocated.

    Args:
        baseline: Who is to decode the file.
        encoded: The file.
        sections: Names of the baseline's own sections.

    Raises:
        MismatchError: Another codec, other tables or other settings made the file.
        FormatError: A section is missing, unknown or damaged, or the shapes contradict the raw size.
    """
    remedy = "Decode it with the codec that made it"
    if encoded.codec != baseline.kind:
        raise MismatchError("the codec", encoded.codec, baseline.kind, remedy)
    if encoded.codec_fingerprint != baseline.fingerprint:
        raise MismatchError("the codec", encoded.codec_fingerprint[:16], baseline.fingerprint[:16], remedy)
    for key, value in baseline.settings.items():
        if encoded.settings.get(key) != value:
            raise MismatchError(f"the setting {key!r}", str(encoded.settings.get(key)), str(value), remedy)
    odd = own_sections(encoded) ^ set(sections)
    if odd:
        raise FormatError(f"the file's sections are not those of its codec: {', '.join(sorted(odd))}")
    token_ids, origin, positions = read_session(encoded)
    shapes: list[Shape] = []
    for (heads, key_size, value_size), held in zip(
        shapes_of_runs(runs_of(encoded.settings), len(positions)), positions, strict=True
    ):
        shapes += [(heads, len(held), key_size), (heads, len(held), value_size)]
    if 2 * sum(heads * tokens * size for heads, tokens, size in shapes) != encoded.raw_bytes:
        raise FormatError(f"the shapes do not add up to the header's {encoded.raw_bytes} raw bytes")
    return Opened(token_ids, origin, positions, shapes)


def rebuilt(session: Opened, numbers: Iterable[Reals | Tensor]) -> KVSnapshot:
    """Return the snapshot of decoded keys and values, rounded to the cache's dtype.

    Args:
        session: What the file says of the session.
        numbers: Keys [H, T, D] and values [H, T, Dv] of each layer in turn. What lies beyond the dtype becomes its
            largest number: a step that was rounded up may lead a little past the largest value.
    """
    dtype = CACHE_DTYPES[session.origin.dtype]
    limit = torch.finfo(dtype).max
    tensors = [torch.as_tensor(part).double().clamp(-limit, limit).to(dtype).contiguous() for part in numbers]
    parts = zip(tensors[::2], tensors[1::2], session.positions, strict=True)
    layers = tuple(LayerKV(keys, values, held.clone()) for keys, values, held in parts)
    return KVSnapshot(layers, session.token_ids, session.origin)


def stored_dtype(snapshot: KVSnapshot) -> str:
    """Return the 16-bit dtype that a cache is stored in: its own, or for float32 the one that can hold its values."""
    if snapshot.origin.dtype != "float32":
        return snapshot.origin.dtype
    largest = max((float(part.abs().max()) for part in cache_tensors(snapshot) if part.numel()), default=0.0)
    return "float16" if largest <= MOST_FLOAT16 else "bfloat16"


def to_16_bits(tensor: Tensor, dtype: str) -> bytes:
    """Return the numbers of a tensor as 16-bit little-endian words, in C order."""
    limit = torch.finfo(CACHE_DTYPES[dtype]).max
    words = tensor.clamp(-limit, limit).to(CACHE_DTYPES[dtype]).contiguous().view(torch.int16)
    return words.numpy().astype("<i2").tobytes()


def from_16_bits(data: bytes, dtype: str, shape: Shape) -> Tensor:
    """Return the tensor of a 16-bit dtype; the inverse of `to_16_bits`."""
    words = torch.from_numpy(np.frombuffer(data, "<i2").astype(np.int16))
    return words.view(CACHE_DTYPES[dtype]).reshape(shape)


def stored_in(encoded: Encoded, origin: Origin) -> str:
    """Return the 16-bit dtype that a file names.

    Raises:
        FormatError: It is none, or not the one of this cache.
    """
    dtype = encoded.settings.get("stored")
    if dtype not in ("float16", "bfloat16") or origin.dtype not in (dtype, "float32"):
        raise FormatError(f"a {origin.dtype} cache cannot be stored as {dtype!r}")
    return str(dtype)


def raw_words(snapshot: KVSnapshot, dtype: str) -> bytes:
    """Return the whole cache at 16 bits a value."""
    return b"".join(to_16_bits(tensor, dtype) for tensor in cache_tensors(snapshot))


def from_raw_words(data: bytes, session: Opened, dtype: str) -> KVSnapshot:
    """Return the snapshot of `raw_words`."""
    reader = Reader(data, "the section 'cache'")
    tensors = [from_16_bits(reader.take(2 * int(np.prod(shape))), dtype, shape) for shape in session.shapes]
    reader.require_end()
    return rebuilt(session, tensors)


class Raw16:
    """Stores the cache uncompressed: the point at size ratio 1."""

    name = family = kind = "raw16"
    fingerprint = ""
    codec_bytes = 0
    settings: Mapping[str, Any] = {}

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Store a snapshot."""
        dtype = stored_dtype(snapshot)
        return closed(self, snapshot, {"cache": raw_words(snapshot, dtype)}, stored=dtype)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot, the identical bits for a 16-bit cache.

        Raises:
            MismatchError: Another codec made the file.
            FormatError: It is damaged.
        """
        session = opened(self, encoded, ["cache"])
        return from_raw_words(encoded.sections["cache"], session, stored_in(encoded, session.origin))


def family(calibration: Calibration) -> list[Baseline]:
    """Return the only point; nothing is learnt from the calibration sessions."""
    return [Raw16()]
