"""From what the user asks for to a rate: a quality word or a size ratio."""

from __future__ import annotations

from kvcompress.codec import HIGHEST_RATE, TinyVAECodec
from kvcompress.container import Encoded, to_bytes
from kvcompress.errors import InputError
from kvcompress.int8 import Int8Codec
from kvcompress.known import figures_of, is_unlike, knows
from kvcompress.snapshot import KVSnapshot

QUALITIES = ("transparent", "high", "usable")
SIZE_RATIO_TOLERANCE = 0.03
FINEST_RATE = HIGHEST_RATE // 2


def encode_at_quality(codec: TinyVAECodec, snapshot: KVSnapshot, quality: str) -> Encoded:
    """Encode at the rate whose fidelity was measured to hold a quality word.

    It was measured on ordinary sessions. One that turns out to be unlike them is coded at the next finer quality, and
    so on until it is ordinary there, and last by int8, which knows no sessions. Its settings then hold `unlike`: true
    and `stored`: the finer quality, or "int8".

    Raises:
        InputError: The codec has no such tier.
    """
    codec.rate_of(quality)
    finer = QUALITIES[QUALITIES.index(quality) :: -1] if quality in QUALITIES else (quality,)
    for stored in (name for name in finer if name in codec.tiers):
        settings = {"quality": quality} if stored == quality else {"quality": quality, "stored": stored, "unlike": True}
        encoded = codec.encode(snapshot, codec.rate_of(stored), settings)
        if not knows(codec, stored):
            return encoded
        if not is_unlike(codec, stored, figures_of(snapshot, encoded, codec.decode(encoded)), snapshot.tokens):
            return encoded
    return Int8Codec().encode(snapshot, {"quality": quality, "stored": Int8Codec.kind, "unlike": True})


def encode_at_size_ratio(codec: TinyVAECodec, snapshot: KVSnapshot, size_ratio: float) -> Encoded:
    """Encode at the finest rate whose file is at least `size_ratio` times smaller than the raw cache.

    Where that overshoots by more than 3 % and the next finer file misses by less, that one is returned.

    Raises:
        InputError: The ratio is not positive, or even the coarsest rate is larger.
    """
    if not size_ratio > 0:
        raise InputError(f"size ratio {size_ratio} is not positive", "Ask for a ratio such as 20")
    files: dict[int, Encoded] = {}

    def reached(rate: int) -> float:
        if rate not in files:
            files[rate] = codec.encode(snapshot, rate, {"size_ratio": size_ratio})
        return snapshot.raw_bytes / len(to_bytes(files[rate]))

    best, low, high = -1, 0, FINEST_RATE
    while low <= high:
        middle = (low + high) // 2
        if reached(middle) >= size_ratio:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    if best < 0:
        raise InputError(f"size ratio {size_ratio:g} cannot be met", f"The coarsest file reaches {reached(0):.1f}")
    overshoot = reached(best) / size_ratio
    if overshoot > 1 + SIZE_RATIO_TOLERANCE and best < FINEST_RATE and size_ratio / reached(best + 1) < overshoot:
        best += 1
    return files[best]


def size_ratio_note(encoded: Encoded, reached: float) -> str | None:
    """Say in one line how far a file is from the size ratio that was asked for; None within 3 %."""
    asked = encoded.settings["size_ratio"]
    if abs(reached / asked - 1) <= SIZE_RATIO_TOLERANCE:
        return None
    finest = encoded.settings["rate"] >= FINEST_RATE
    reason = "the codec has no finer rate" if finest else "the grid of rates is coarser here"
    return f"asked {asked:g}, reached {reached:.4g}: {reason}"
