"""KIVI: asymmetric quantisation in small groups, keys along the tokens, values along the channels.

Z. Liu, J. Yuan, H. Jin, S. Zhong, Z. Xu, V. Braverman, B. Chen, X. Hu, "KIVI: A Tuning-Free Asymmetric 2bit
Quantization for KV Cache", arXiv 2402.02750. Keys have channels that are large in every token, so a group of keys is
32 tokens of one channel; values have none, so a group of values is 32 channels of one token. The newest tokens stay
at 16 bits: of the values the last R, of the keys the last T mod R, because keys wait until R of them fill whole groups.

What differs: zero point and step are rounded outwards to float16, so that no value falls outside its group's range,
and are float32 where a group is beyond float16; the last group of a head whose size is no multiple of 32 is shorter.

```
codes      keys [H, D, Tk], values [H, Tv, D] of each layer, packed
scales     for each of them the zero points, then the steps, one a group
residual   keys [H, T - Tk, D], values [H, T - Tv, D] of each layer, 16 bits
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kvcompress.format.container import Encoded
from kvcompress.format.reader import Reader
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.bitpacking import (
    Codes,
    Reals,
    Scales,
    pack_bits,
    pack_scales,
    read_codes,
    read_scales,
    rounded_down,
    rounded_up,
    scale_type,
    section_reader,
)
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import (
    Shape,
    as_reals,
    cache_tensors,
    closed,
    from_16_bits,
    opened,
    rebuilt,
    stored_dtype,
    stored_in,
    to_16_bits,
)

Number = TypeVar("Number", bound=np.generic)

GROUP = 32
POINTS = ((2, 128), (4, 128), (2, 32), (4, 32))  # bits, residual tokens; 128 is the paper's


def group_count(length: int, group: int) -> int:
    """Return the number of groups along an axis, a shorter last one included."""
    return -(-length // group)


def grouped(numbers: Reals, group: int) -> Reals:
    """Cut the last axis into groups: [..., n] -> [..., groups, group].

    A shorter last group is filled up with its last number, which changes neither its minimum nor its maximum.
    """
    length = numbers.shape[-1]
    count = group_count(length, group)
    if count * group > length:
        padding = [(0, 0)] * (numbers.ndim - 1) + [(0, count * group - length)]
        numbers = np.pad(numbers, padding, mode="edge")
    return numbers.reshape(*numbers.shape[:-1], count, group)


def ungrouped(groups: npt.NDArray[Number], length: int) -> npt.NDArray[Number]:
    """Return the last axis uncut, without what filled its last group: [..., groups, group] -> [..., length]."""
    return groups.reshape(*groups.shape[:-2], groups.shape[-2] * groups.shape[-1])[..., :length]


def quantize_asymmetric(groups: Reals, bits: int) -> tuple[Codes, Scales, Scales]:
    """Quantise each group between its minimum and its maximum; the error is at most half a step.

    Args:
        groups: [..., group].
        bits: Bits a code.

    Returns:
        Codes [..., group] uint8, zero points [...] and steps [...], both float16 or both float32.
    """
    low, high = groups.min(-1), groups.max(-1)
    dtype = scale_type(low, high)
    zero = rounded_down(low, dtype)
    step = rounded_up((high - zero.astype(np.float64)) / (2**bits - 1), dtype)
    offsets = groups - zero.astype(np.float64)[..., None]
    divisor = np.where(step > 0, step, 1).astype(np.float64)[..., None]
    codes = np.clip(np.rint(offsets / divisor), 0, 2**bits - 1).astype(np.uint8)
    return codes, zero, step


def dequantize_asymmetric(codes: Codes, zero: Reals, step: Reals) -> Reals:
    """Return the numbers [..., group] of codes [..., group], zero points [...] and steps [...]."""
    return zero[..., None] + codes * step[..., None]


class Kivi:
    """One setting of KIVI.

    Args:
        name: Name of the point.
        family: Name of its curve.
        bits: Bits a code.
        residual_tokens: Newest tokens that stay at 16 bits; a multiple of the group, 32.
    """

    kind = "kivi"
    fingerprint = ""
    codec_bytes = 0

    def __init__(self, name: str, family: str, bits: int, residual_tokens: int) -> None:
        self.name, self.family = name, family
        self.bits, self.residual_tokens = bits, residual_tokens
        self.settings: Mapping[str, Any] = {"bits": bits, "group": GROUP, "residual_tokens": residual_tokens}

    def quantized_tokens(self, tokens: int, *, keys: bool) -> int:
        """Return how many of the oldest tokens are quantised."""
        return tokens - tokens % self.residual_tokens if keys else max(tokens - self.residual_tokens, 0)

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Quantise a snapshot."""
        dtype = stored_dtype(snapshot)
        codes, scales, residual = [], [], []
        for index, tensor in enumerate(cache_tensors(snapshot)):
            is_key = index % 2 == 0
            split = self.quantized_tokens(tensor.shape[1], keys=is_key)
            numbers = as_reals(tensor[:, :split])
            packed, described = self._encode_array(numbers.transpose(0, 2, 1) if is_key else numbers)
            codes.append(packed)
            scales.append(described)
            residual.append(to_16_bits(tensor[:, split:], dtype))
        own = {"codes": b"".join(codes), "scales": b"".join(scales), "residual": b"".join(residual)}
        return closed(self, snapshot, own, stored=dtype)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot.

        Raises:
            MismatchError: Another codec or other settings made the file.
            FormatError: It is damaged.
        """
        names = ["codes", "scales", "residual"]
        session = opened(self, encoded, names)
        dtype = stored_in(encoded, session.origin)
        codes, scales, residual = (section_reader(encoded.sections, name) for name in names)
        parts = []
        for index, (heads, tokens, size) in enumerate(session.shapes):
            is_key = index % 2 == 0
            split = self.quantized_tokens(tokens, keys=is_key)
            shape = (heads, size, split) if is_key else (heads, split, size)
            old = self._decode_array(codes, scales, shape)
            recent = (heads, tokens - split, size)
            new = as_reals(from_16_bits(residual.take(2 * int(np.prod(recent))), dtype, recent))
            parts.append(np.concatenate([old.transpose(0, 2, 1) if is_key else old, new], axis=1))
        for reader in (codes, scales, residual):
            reader.require_end()
        return rebuilt(session, parts)

    def _encode_array(self, numbers: Reals) -> tuple[bytes, bytes]:
        """Quantise [..., n] along its last axis; return packed codes and scales."""
        codes, zero, step = quantize_asymmetric(grouped(numbers, GROUP), self.bits)
        kept = ungrouped(codes, numbers.shape[-1])
        return pack_bits(kept, self.bits), pack_scales(np.concatenate([zero[None], step[None]]))

    def _decode_array(self, codes: Reader, scales: Reader, shape: Shape) -> Reals:
        """Return the numbers of the next codes and scales, of `shape`."""
        groups = group_count(shape[-1], GROUP)
        zero, step = read_scales(scales, (2, *shape[:-1], groups))
        found = read_codes(codes, shape, self.bits)
        padding = [(0, 0)] * (len(shape) - 1) + [(0, groups * GROUP - shape[-1])]
        whole = np.pad(found, padding).reshape(*shape[:-1], groups, GROUP)
        return ungrouped(dequantize_asymmetric(whole, zero, step), shape[-1])


def family(calibration: Calibration) -> list[Baseline]:
    """Return 2 and 4 bits with 128 and with 32 residual tokens; nothing is learnt from the calibration sessions."""
    points: list[Baseline] = []
    for bits, residual_tokens in POINTS:
        suffix = "" if residual_tokens == 128 else f"-r{residual_tokens}"
        points.append(Kivi(f"kivi-{bits}bit{suffix}", f"kivi{suffix}", bits, residual_tokens))
    return points
