"""This project's codec as one of the suite: a curve over rates, its quality words among them."""

from __future__ import annotations

from kvcompress.codec import TinyVAECodec
from kvcompress.container import Encoded
from kvcompress.snapshot import KVSnapshot
from tinyvae.quantize import LEVELS_PER_OCTAVE

_OCTAVES_FINER = 2


class TinyVAEPoint:
    """A TinyVAE codec at one rate.

    Args:
        codec: The codec.
        name: Name in the report.
        family: Name of the curve.
        rate: Rate index.
        codec_bytes: Size of its checkpoint.
        quality: The quality word whose rate this is, if it is one.
    """

    kind = TinyVAECodec.kind

    def __init__(
        self, codec: TinyVAECodec, name: str, family: str, rate: int, codec_bytes: int, quality: str | None = None
    ) -> None:
        self.codec, self.name, self.family, self.rate, self.codec_bytes = codec, name, family, rate, codec_bytes
        self.quality = quality

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the codec."""
        return self.codec.fingerprint

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code at this point's rate."""
        return self.codec.encode(snapshot, self.rate)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Decode."""
        return self.codec.decode(encoded)


def points(codec: TinyVAECodec, family: str, codec_bytes: int) -> list[TinyVAEPoint]:
    """Return the quality words and, between and beyond them, a rate every half octave."""
    words = {rate: quality for quality, rate in codec.tiers.items()}
    finest = max(words, default=4 * LEVELS_PER_OCTAVE) + _OCTAVES_FINER * LEVELS_PER_OCTAVE
    between = range(0, finest + 1, LEVELS_PER_OCTAVE // 2)
    free = [rate for rate in between if all(abs(rate - word) >= LEVELS_PER_OCTAVE // 4 for word in words)]
    return [
        TinyVAEPoint(codec, f"{family}-{words.get(rate, f'r{rate}')}", family, rate, codec_bytes, words.get(rate))
        for rate in sorted([*free, *words], reverse=True)
    ]
