"""What files cost and save: seconds over links, memory by length, from which length on restoring pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LINKS_MEGABITS = (10, 100, 1000)
MEMORIES_GIGABYTES = (1, 4, 16)


def link_seconds(file_bytes: float, seconds: float) -> dict[str, float]:
    """Return seconds until the model can go on, by link in Mbit/s: the file's journey, then `seconds` of work."""
    return {str(link): 8 * file_bytes / (link * 1e6) + seconds for link in LINKS_MEGABITS}


def break_even_tokens(lengths: Sequence[int], restore: Sequence[float], prefill: Sequence[float]) -> int | None:
    """Return the length from which on restoring is faster than prefilling, interpolated between measured lengths.

    Args:
        lengths: Tokens, increasing.
        restore: Seconds at each length.
        prefill: Seconds at each length.

    Returns:
        The shortest such length; None where the longest measured one does not pay.
    """
    gains = [again - back for back, again in zip(restore, prefill, strict=True)]
    if gains[-1] <= 0:
        return None
    last_loss = max((index for index, gain in enumerate(gains) if gain <= 0), default=None)
    if last_loss is None:
        return int(lengths[0])
    low, high = lengths[last_loss], lengths[last_loss + 1]
    share = -gains[last_loss] / (gains[last_loss + 1] - gains[last_loss])
    return round(low + share * (high - low))


def longest_context_tokens(bytes_per_token: float) -> dict[str, int]:
    """Return how many tokens of sessions fit into some memories."""
    return {f"{memory} GB": int(memory * 1e9 / bytes_per_token) for memory in MEMORIES_GIGABYTES}


def memory_table(
    lengths: Sequence[int], raw_bytes_per_token: int, coded_bytes_per_token: Mapping[str, float]
) -> list[dict[str, object]]:
    """Return the cache's size by length, raw and coded; coded sizes grow linearly from the measured length."""
    return [
        {
            "tokens": tokens,
            "raw_bytes": tokens * raw_bytes_per_token,
            "coded_bytes": {name: max(1, round(tokens * size)) for name, size in coded_bytes_per_token.items()},
        }
        for tokens in lengths
    ]
