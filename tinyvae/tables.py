"""Densities to frozen integer tables: the only place where a probability becomes an integer.

There is one table per level. It is the histogram of real normalised latents, scaled to that level
and quantised, so it has their true shape and not that of a textbook density. Coder and decoder see
the integers only; they are part of the codec's fingerprint.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tinyvae.quantize import LEVELS, quantize, scale_of_level

TABLE_TOTAL = 1 << 16


def largest_symbol(level: int) -> int:
    """Return the largest magnitude with an entry of its own; beyond it the escape entry is used."""
    return int(np.ceil(6.0 * scale_of_level(level))) + 2


def table_length(level: int) -> int:
    """Return the number of entries of a level's table: -m..m and the escape."""
    return 2 * largest_symbol(level) + 2


TABLE_ENTRIES = sum(map(table_length, range(LEVELS)))
"""Entries of all tables together."""


def freeze_counts(weights: npt.NDArray[np.float64], total: int = TABLE_TOTAL) -> npt.NDArray[np.int64]:
    """Turn non-negative weights into integers of sum `total`, each at least 1.

    Raises:
        ValueError: There are more entries than `total`.
    """
    if len(weights) > total:
        raise ValueError(f"{len(weights)} entries do not fit a table of total {total}")
    share = weights / weights.sum() * (total - len(weights))
    counts: npt.NDArray[np.int64] = np.floor(share).astype(np.int64) + 1
    order = np.argsort(-(share - np.floor(share)), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def build_tables(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Build all tables and reconstruction offsets from normalised latents.

    Args:
        samples: [S] float32 of about unit variance.

    Returns:
        counts [TABLE_ENTRIES] int32, the tables one after another, each over the symbols
        -m..m and then the escape; offsets [LEVELS + 1] int32 where they start; centroids
        [LEVELS, 2] float32 (see `TinyVAE`).
    """
    tables, centroids = [], torch.zeros(LEVELS, 2, dtype=torch.float32)
    for level in range(LEVELS):
        scaled = samples * scale_of_level(level)
        symbols = quantize(scaled, 1.0, torch.zeros_like(scaled, dtype=torch.int32))
        for column, chosen in enumerate((symbols.abs() == 1, symbols.abs() >= 2)):
            if int(chosen.sum()) >= 50:
                gap = symbols[chosen].abs() - scaled[chosen].abs()
                centroids[level, column] = gap.mean().clamp(-0.1, 0.45)
        tables.append(torch.from_numpy(_table(symbols.numpy(), level)))
    lengths = torch.tensor([0] + [len(t) for t in tables])
    return torch.cat(tables).int(), lengths.cumsum(0).int(), centroids


def _table(symbols: npt.NDArray[np.int32], level: int) -> npt.NDArray[np.int64]:
    """Count symbols, both signs alike, over a thin tail that falls off with the magnitude."""
    top = largest_symbol(level)
    magnitude = np.bincount(np.minimum(np.abs(symbols), top + 1), minlength=top + 2).astype(np.float64)
    inner = magnitude[: top + 1]
    tail = np.exp(-np.arange(top + 1) / max(1.0, 2.0 * scale_of_level(level)))
    inner = inner + tail / tail.sum() * 4.0
    sides = np.concatenate([inner[:0:-1] / 2, inner[:1], inner[1:] / 2])
    return freeze_counts(np.concatenate([sides, [magnitude[top + 1] + 0.5]]))
