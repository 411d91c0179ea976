"""From what the user asks for to a rate: a quality word or a size ratio."""

from __future__ import annotations

from typing import Any

from kvcompress.codec import HIGHEST_RATE, TinyVAECodec
from kvcompress.container import Encoded, to_bytes
from kvcompress.errors import InputError
from kvcompress.snapshot import KVSnapshot

QUALITIES = ("transparent", "high", "usable")


def encode_at_quality(codec: TinyVAECodec, snapshot: KVSnapshot, quality: str) -> Encoded:
    """Encode at the rate whose fidelity was measured to hold a quality word."""
    return codec.encode(snapshot, codec.rate_of(quality), {"quality": quality})


def encode_at_size_ratio(codec: TinyVAECodec, snapshot: KVSnapshot, size_ratio: float) -> Encoded:
    """Encode at the finest rate whose file is at least `size_ratio` times smaller than the raw cache.

    Raises:
        InputError: The ratio is not positive, or even the coarsest rate is larger.
    """
    if not size_ratio > 0:
        raise InputError(f"size ratio {size_ratio} is not positive", "Ask for a ratio such as 20")
    settings: dict[str, Any] = {"size_ratio": size_ratio}
    allowed_bytes = snapshot.raw_bytes / size_ratio
    best, low, high = None, 0, HIGHEST_RATE // 2
    while low <= high:
        middle = (low + high) // 2
        encoded = codec.encode(snapshot, middle, settings)
        if len(to_bytes(encoded)) <= allowed_bytes:
            best, low = encoded, middle + 1
        else:
            high = middle - 1
    if best is None:
        smallest = len(to_bytes(codec.encode(snapshot, 0, settings)))
        most = snapshot.raw_bytes / smallest
        raise InputError(f"size ratio {size_ratio:g} cannot be met", f"The coarsest file reaches {most:.1f}")
    return best
