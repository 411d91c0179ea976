"""Eight bits a value, the quantisation that serving stacks call lossless.

Two layouts. "int8" has one scale for each channel of each head in the keys, whose channels differ in size from each
other far more than from token to token, and one for each token of each head in the values. "q8_0" has one scale for
each 32 numbers of a head at one token, keys and values alike: the blocks of llama.cpp's type of that name.

Both are symmetric, as practised. A zero point beside each scale was tried on a session of the bundled model: it costs
bytes and did not lower the KL of resuming (7.1e-6 nats with it, 5.6e-6 without, layout "int8"). Scales are float16,
rounded upwards so that nothing is clipped, and float32 where a number is beyond float16.

```
codes      keys [H, D, T] ("int8") or [H, T, D] ("q8_0"), values [H, T, D] of each layer, int8
scales     one block for each of them
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.rivals.bitpacking import ByteReader, Reals, Scales, pack_scales, rounded_up, scale_type
from eval.rivals.kivi import group_count, grouped, ungrouped
from eval.rivals.protocol import Calibration, Rival
from eval.rivals.raw16 import Shape, as_reals, cache_tensors, closed, opened, rebuilt
from kvcompress.container import Encoded
from kvcompress.snapshot import KVSnapshot

BLOCK = 32
MOST = 127

LAYOUTS = ("int8", "q8_0")


def quantize_symmetric(groups: Reals) -> tuple[npt.NDArray[np.int8], Scales]:
    """Quantise each group [..., n] with a step of 1/127 of its largest magnitude; the error is at most half a step.

    Returns:
        Codes [..., n] int8, and steps [...], float16 or float32.
    """
    largest = np.abs(groups).max(-1, initial=0.0)
    step = rounded_up(largest / MOST, scale_type(largest))
    divisor = np.where(step > 0, step, 1).astype(np.float64)[..., None]
    return np.clip(np.rint(groups / divisor), -MOST, MOST).astype(np.int8), step


class Int8:
    """One of the two layouts.

    Args:
        layout: "int8" or "q8_0", also the point's name.
    """

    family = kind = "int8"
    fingerprint = ""
    codec_bytes = 0

    def __init__(self, layout: str) -> None:
        self.name = layout
        self.settings: Mapping[str, Any] = {"layout": layout}

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Quantise a snapshot."""
        codes, scales = [], []
        for index, tensor in enumerate(cache_tensors(snapshot)):
            numbers = self._turned(as_reals(tensor), index)
            found, step = quantize_symmetric(self._groups(numbers))
            codes.append(ungrouped(found, numbers.shape[-1]).tobytes())
            scales.append(pack_scales(step))
        return closed(self, snapshot, {"codes": b"".join(codes), "scales": b"".join(scales)})

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot.

        Raises:
            MismatchError: Another codec or the other layout made the file.
            FormatError: It is damaged.
        """
        session = opened(self, encoded, ["codes", "scales"])
        codes, scales = (ByteReader(encoded.sections[name], name) for name in ("codes", "scales"))
        parts = []
        for index, (heads, tokens, size) in enumerate(session.shapes):
            shape = (heads, size, tokens) if self._along_tokens(index) else (heads, tokens, size)
            parts.append(self._turned(self._decode_array(codes, scales, shape), index))
        codes.require_end()
        scales.require_end()
        return rebuilt(session, parts)

    def _along_tokens(self, index: int) -> bool:
        """Tell whether a tensor's groups run along its tokens: the keys of "int8"."""
        return self.name == "int8" and index % 2 == 0

    def _turned(self, numbers: Reals, index: int) -> Reals:
        """Return a tensor with its groups along the last axis, or turn it back."""
        return numbers.transpose(0, 2, 1) if self._along_tokens(index) else numbers

    def _groups(self, numbers: Reals) -> Reals:
        """Return [..., groups, n]: blocks of 32, or the whole last axis as one group."""
        return grouped(numbers, BLOCK) if self.name == "q8_0" else numbers[..., None, :]

    def _decode_array(self, codes: ByteReader, scales: ByteReader, shape: Shape) -> Reals:
        """Return the numbers of the next codes and scales, of `shape`."""
        groups = group_count(shape[-1], BLOCK) if self.name == "q8_0" else 1
        step = scales.scales((*shape[:-1], groups))
        found = codes.codes(shape, 8).view(np.int8)
        each = np.repeat(step, BLOCK, axis=-1)[..., : shape[-1]] if self.name == "q8_0" else step
        numbers: Reals = found * each
        return numbers


def family(calibration: Calibration) -> list[Rival]:
    """Return both layouts; nothing is learnt from the calibration sessions."""
    return [Int8(layout) for layout in LAYOUTS]
