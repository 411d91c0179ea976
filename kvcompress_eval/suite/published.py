"""Figures that others published of fixed-rate codecs, shown beside those measured here and never mixed with them.

Another model, other texts and other lengths: they say what such codecs are known to reach, and are no comparison.
"""

from __future__ import annotations

from typing import Any

SOURCE = "README of Lifeboat Cache 0.1.11: Qwen3-4B, chunks of 256 tokens, 512 tokens continued"
STORED = ("2K", "8K", "16K")

PUBLISHED: tuple[dict[str, Any], ...] = (
    {"name": "Lifeboat fp8", "size_ratio": [2.0, 2.0, 2.0], "kl_nats": [0.008, 0.003, 0.014], "top1": "98 %"},
    {"name": "Lifeboat lbq4", "size_ratio": [3.5, 3.7, 3.8], "kl_nats": [0.004, 0.005, 0.006], "top1": "98 %"},
    {"name": "Lifeboat lbq3", "size_ratio": [4.3, 4.8, 5.0], "kl_nats": [0.016, 0.012, 0.019], "top1": "96 to 97 %"},
    {"name": "Lifeboat lbq2", "size_ratio": [5.0, 6.0, 6.2], "kl_nats": [0.10, 0.11, 0.15], "top1": "90 to 93 %"},
)
"""Size ratio and mean KL for each number of tokens stored."""

FIXED_RATE = ("int8", "kivi", "turboquant")
"""Families of this suite that give every value the same number of bits."""


def published() -> list[dict[str, Any]]:
    """Return the figures as a result holds them."""
    return [{"source": SOURCE, "stored": list(STORED), **row} for row in PUBLISHED]
