"""This project's lossless codec as one of the suite: byte planes under zstd, bit-exact."""

from __future__ import annotations

from kvcompress.codec.lossless import LosslessCodec
from kvcompress.format.container import Encoded
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.protocol import Baseline, Calibration


class LosslessPoint:
    """The lossless codec; a float32 cache keeps its 32 bits, so it may exceed the 16-bit size."""

    name = family = "lossless"
    kind = LosslessCodec.kind
    fingerprint = ""
    codec_bytes = 0

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code bit by bit."""
        return LosslessCodec().encode(snapshot)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the identical snapshot."""
        return LosslessCodec().decode(encoded)


def family(calibration: Calibration) -> list[Baseline]:
    """Return the one point; nothing is fitted."""
    return [LosslessPoint()]
