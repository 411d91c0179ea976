"""Eight bits a value, the quantisation that serving stacks call lossless.

Two layouts. "int8" is this project's codec of that name: one scale for each channel of each head in the keys, one for
each token of each head in the values. "q8_0" has one scale for each 32 numbers of a head at one token, keys and values
alike: the blocks of llama.cpp's type of that name. Both are symmetric, as practised.

```
codes      keys, then values [H, T, D] of each layer, int8           ("q8_0")
scales     one block for each of them, [H, T, blocks]
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvcompress.codec.int8 import Int8Codec, pack_scales, quantize_symmetric
from kvcompress.format.container import Encoded
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.bitpacking import read_codes, read_scales, section_reader
from kvcompress_eval.baselines.kivi import group_count, grouped, ungrouped
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import as_reals, cache_tensors, closed, opened, rebuilt

BLOCK = 32


class Int8:
    """The installed codec as one of the suite."""

    name = family = "int8"
    kind = Int8Codec.kind
    fingerprint = Int8Codec.fingerprint
    codec_bytes = 0

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Quantise a snapshot."""
        return Int8Codec().encode(snapshot)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot; raises as `Int8Codec.decode` does."""
        return Int8Codec().decode(encoded)


class Q80:
    """Blocks of 32 numbers, each with a scale."""

    name = kind = "q8_0"
    family = "int8"
    fingerprint = ""
    codec_bytes = 0
    settings: Mapping[str, Any] = {}

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Quantise a snapshot."""
        codes, scales = [], []
        for tensor in cache_tensors(snapshot):
            numbers = as_reals(tensor)
            found, step = quantize_symmetric(grouped(numbers, BLOCK))
            codes.append(ungrouped(found, numbers.shape[-1]).tobytes())
            scales.append(pack_scales(step))
        return closed(self, snapshot, {"codes": b"".join(codes), "scales": b"".join(scales)})

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot.

        Raises:
            MismatchError: Another codec made the file.
            FormatError: It is damaged.
        """
        session = opened(self, encoded, ["codes", "scales"])
        codes, scales = (section_reader(encoded.sections, name) for name in ("codes", "scales"))
        parts = []
        for shape in session.shapes:
            step = read_scales(scales, (*shape[:-1], group_count(shape[-1], BLOCK)))
            each = np.repeat(step, BLOCK, axis=-1)[..., : shape[-1]]
            parts.append(read_codes(codes, shape, 8).view(np.int8) * each)
        codes.require_end()
        scales.require_end()
        return rebuilt(session, parts)


def family(calibration: Calibration) -> list[Baseline]:
    """Return both layouts; nothing is learnt from the calibration sessions."""
    return [Int8(), Q80()]
