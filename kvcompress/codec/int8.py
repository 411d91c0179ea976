"""Eight bits per value: a codec without a model, for any cache that no learned codec fits.

Keys have one scale for each channel of each head, since their channels differ in size from each other far more than
from token to token; values have one for each token of each head. Both are symmetric: a zero point beside each scale was
tried on a session of the bundled model and did not lower the KL of resuming (7.1e-6 nats with it, 5.6e-6 without).

```
"codes"    keys [H, D, T], then values [H, T, Dv] of each layer, int8
"scales"   a block for each of them: the width of a scale in bytes, then the scales [H, D] or [H, T]
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvcompress.codec.settings import MOST_SIZE, NOTHING_STATED, CommonSettings, Int8Settings
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.container import Encoded
from kvcompress.format.default_device import on_cpu
from kvcompress.format.json_section import MAX_LAYERS
from kvcompress.format.reader import Reader
from kvcompress.format.session import encoded_session, own_sections, read_session
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV, Origin

Codes = npt.NDArray[np.int8]
Reals = npt.NDArray[np.float64]
Scales = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Shape = tuple[int, int, int]
Run = tuple[int, int, int, int]

MOST = 127
NUMBER_BYTES = 32
"""Memory of a number of the tensor at hand while it is decoded, three times in float64."""

LEAST_FLOAT16_STEP = 2.0**-20
"""Below it float16 rounds a step up by more than a sixteenth."""

_WIDTHS: dict[int, npt.DTypeLike] = {2: "<f2", 4: "<f4"}
_SECTIONS = {"codes", "scales"}


class Int8Codec:
    """Codes any snapshot at 8 bits a value and a scale a channel or token, without weights."""

    kind = "int8"
    fingerprint = ""

    @on_cpu
    def encode(self, snapshot: KVSnapshot, settings: CommonSettings = NOTHING_STATED) -> Encoded:
        """Quantise a snapshot; no number moves by more than half a step of its channel (keys) or token (values).

        Raises:
            InputError: The session does not fit the format.
        """
        codes, scales = [], []
        for layer in snapshot.layers:
            for numbers in (_reals(layer.keys).transpose(0, 2, 1), _reals(layer.values)):
                found, step = quantize_symmetric(numbers)
                codes.append(found.tobytes())
                scales.append(pack_scales(step))
        own = {"codes": b"".join(codes), "scales": b"".join(scales)}
        stated = Int8Settings(**settings.common(), shapes=_shape_runs(snapshot))
        return encoded_session(self.kind, self.fingerprint, snapshot, stated.to_json(), own)

    @on_cpu
    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot, each number within half a step of what was coded.

        Raises:
            MismatchError: Another codec made it.
            FormatError: A section is missing, damaged or unknown, or contradicts another or the header.
            InputError: What was coded is no valid snapshot.
        """
        if (encoded.codec, encoded.codec_fingerprint) != (self.kind, self.fingerprint):
            found = f"{encoded.codec} {encoded.codec_fingerprint[:16]}".strip()
            raise MismatchError("the codec", found, self.kind, "Decode it with the codec that made it")
        odd = sorted(_SECTIONS ^ own_sections(encoded))
        if odd:
            raise FormatError(f"the file's sections are not those of its codec: {', '.join(odd)}")
        shapes = list[Shape]()
        if encoded.raw_bytes != 2 * len(encoded.sections["codes"]):
            codes = len(encoded.sections["codes"])
            raise FormatError(f"the header counts {encoded.raw_bytes} raw bytes, the section 'codes' has {codes} codes")

        def working_bytes(origin: Origin, held: Sequence[int]) -> int:
            shapes.extend(_coded_shapes(encoded, held))
            return NUMBER_BYTES * max(map(math.prod, shapes), default=0)

        token_ids, origin, positions = read_session(encoded, decoding_bytes=working_bytes)
        tensors = _dequantized(encoded.sections, shapes)
        dtype, layers = CACHE_DTYPES[origin.dtype], []
        for place in positions:
            keys = _rounded(next(tensors).transpose(0, 2, 1), dtype)
            layers.append(LayerKV(keys, _rounded(next(tensors), dtype), place))
        next(tensors, None)  # there is none, and nothing may follow in the sections either
        return KVSnapshot(tuple(layers), token_ids, origin)


def quantize_symmetric(groups: Reals) -> tuple[Codes, Scales]:
    """Quantise each group [..., n] with a step of 1/127 of its largest magnitude; the error is at most half a step.

    Returns:
        Codes [..., n] int8 from -127 to 127, and steps [...], float16 or float32.
    """
    step = rounded_up(np.abs(groups).max(-1, initial=0.0) / MOST)
    divisor = np.where(step > 0, step, 1).astype(np.float64)[..., None]
    return np.clip(np.rint(groups / divisor), -MOST, MOST).astype(np.int8), step


def rounded_up(steps: Reals) -> Scales:
    """Return the least numbers that are not below these, which are not negative: so nothing is ever clipped.

    They are float16, or float32 where a step is too large for float16 or so small that rounding up would coarsen it.
    """
    small = steps[steps > 0].min(initial=LEAST_FLOAT16_STEP) < LEAST_FLOAT16_STEP
    large = steps.max(initial=0.0) > float(np.finfo(np.float16).max)
    dtype: type[np.float32 | np.float16] = np.float32 if small or large else np.float16
    narrow: npt.NDArray[Any] = np.minimum(steps, float(np.finfo(dtype).max)).astype(dtype)
    return np.where(narrow < steps, np.nextafter(narrow, np.finfo(dtype).max), narrow)


def pack_scales(scales: Scales) -> bytes:
    """Return a block of scales: their width in bytes, then the numbers, little-endian, in C order."""
    width = scales.dtype.itemsize
    return bytes([width]) + np.ascontiguousarray(scales, dtype=_WIDTHS[width]).tobytes()


def _reals(tensor: Tensor) -> Reals:
    """Return a tensor as float64, which holds every cache dtype exactly."""
    numbers: Reals = tensor.detach().cpu().double().numpy()
    return numbers


def _rounded(numbers: Reals, dtype: torch.dtype) -> Tensor:
    """Return numbers in the cache's dtype; a step that was rounded up may lead a little past its largest number."""
    limit = torch.finfo(dtype).max
    return torch.from_numpy(np.ascontiguousarray(numbers)).clamp(-limit, limit).to(dtype)


def _shape_runs(snapshot: KVSnapshot) -> tuple[Run, ...]:
    """Return the layers' shapes as runs of [layers, heads, size of a key, size of a value]."""
    shapes = [(layer.keys.shape[0], layer.keys.shape[2], layer.values.shape[2]) for layer in snapshot.layers]
    for index, shape in enumerate(shapes):
        if max(shape) > MOST_SIZE:
            raise InputError(f"layer {index}: heads and head sizes {shape} are more than {MOST_SIZE}")
    return tuple((len(list(run)), *shape) for shape, run in groupby(shapes))


def _coded_shapes(encoded: Encoded, held: Sequence[int]) -> Iterator[Shape]:
    """Yield the shape of each coded tensor, keys [H, D, T] and values [H, T, Dv] in turn.

    All sizes are settled here, before anything is allocated: they must add up to the header's raw size and to the
    section "codes".

    Args:
        encoded: The file.
        held: For each layer the number of its tokens.
    """
    layers = shapes_of_runs(Int8Settings.from_json(encoded.settings).shapes, len(held))
    count = sum(heads * tokens * (key + value) for (heads, key, value), tokens in zip(layers, held, strict=True))
    if 2 * count != encoded.raw_bytes:
        raise FormatError(f"the header counts {encoded.raw_bytes} raw bytes, the setting 'shapes' {2 * count}")
    if count != len(encoded.sections["codes"]):
        raise FormatError(f"the section 'codes' has {len(encoded.sections['codes'])} bytes instead of {count}")
    for (heads, key, value), tokens in zip(layers, held, strict=True):
        yield heads, key, tokens
        yield heads, tokens, value


def shapes_of_runs(runs: Sequence[Run], layers: int) -> list[Shape]:
    """Return heads, key size and value size of each layer from the setting "shapes"."""
    shapes: list[Shape] = []
    for count, *shape in runs:
        if not 0 < count <= MAX_LAYERS - len(shapes):
            raise FormatError(f"the setting 'shapes' has an empty run or more than {MAX_LAYERS} layers")
        shapes += [(shape[0], shape[1], shape[2])] * count
    if len(shapes) != layers:
        raise FormatError(f"the setting 'shapes' has {len(shapes)} layers, the section 'positions' {layers}")
    return shapes


def _dequantized(sections: Mapping[str, bytes], shapes: Sequence[Shape]) -> Iterator[Reals]:
    """Yield the numbers of each tensor, whose shapes are known to fill the section "codes"."""
    codes, scales = (Reader(sections[name], f"the section {name!r}") for name in ("codes", "scales"))
    for heads, rows, columns in shapes:
        found = codes.numbers(np.int8, heads * rows * columns)
        if found.size and int(found.min()) < -MOST:
            raise FormatError("the section 'codes' holds the code -128", offset=codes.offset)
        steps = scales.scales(heads * rows, signed=False)
        yield found.reshape(heads, rows, columns) * steps.reshape(heads, rows, 1)
    codes.require_end()
    scales.require_end()
