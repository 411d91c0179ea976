"""Size ratio to QP: the finest QP whose file is small enough."""

from __future__ import annotations

import math

import torch

from kvcompress.codec.analysis import HIGHEST_QP, Analysis
from kvcompress.codec.settings import CommonSettings, TinyVAESettings, settings_of
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError, require_positive
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.snapshot import KVSnapshot
from tinyvae.quantize import LEVELS_PER_OCTAVE

SIZE_RATIO_TOLERANCE = 0.03
FINEST_QP = HIGHEST_QP // 2


def encode_at_size_ratio(codec: TinyVAECodec, snapshot: KVSnapshot, size_ratio: float) -> Encoded:
    """Encode at the finest QP whose file is at least `size_ratio` times smaller than the raw cache.

    Where that overshoots by more than 3 % the closest of the next finer file and files between is returned.

    Raises:
        InputError: The ratio is not positive, or even the coarsest QP is larger.
    """
    require_positive("a size ratio", size_ratio, "Ask for a ratio such as 20")
    files, analysis = dict[int, Encoded](), codec.analyse(snapshot)

    def reached(qp: int) -> float:
        if qp not in files:
            files[qp] = analysis.encode(qp, CommonSettings(size_ratio=size_ratio))
        return snapshot.raw_bytes / len(to_bytes(files[qp]))

    best, low, high = -1, 0, FINEST_QP
    while low <= high:
        middle = (low + high) // 2
        if reached(middle) >= size_ratio:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    if best < 0:
        raise InputError(f"size ratio {size_ratio:g} cannot be met", f"The coarsest file reaches {reached(0):.1f}")
    overshoot = reached(best) / size_ratio
    if overshoot <= 1 + SIZE_RATIO_TOLERANCE or best == FINEST_QP:
        return files[best]
    if size_ratio / reached(best + 1) < min(overshoot, 1 + SIZE_RATIO_TOLERANCE):
        return files[best + 1]
    between = _newest_finer(analysis, size_ratio, best)
    candidates = (files[best], files[best + 1], *between)
    return min(candidates, key=lambda file: abs(math.log(snapshot.raw_bytes / len(to_bytes(file)) / size_ratio)))


def _newest_finer(analysis: Analysis, size_ratio: float, qp: int) -> list[Encoded]:
    """Return files between two QPs, where the grid is too coarse: as many of the newest tokens as fit are finer.

    Only few tokens are, by a whole octave, because a file has to say which.
    """
    snapshot = analysis.snapshot
    found, low, high = list[Encoded](), 1, snapshot.tokens // 4
    while low <= high:
        count = (low + high) // 2
        offsets = torch.zeros(snapshot.tokens, dtype=torch.int64)
        offsets[-count:] = LEVELS_PER_OCTAVE
        found.append(analysis.encode(qp, CommonSettings(size_ratio=size_ratio), offsets))
        if snapshot.raw_bytes / len(to_bytes(found[-1])) >= size_ratio:
            low = count + 1
        else:
            high = count - 1
    return found


def size_ratio_note(encoded: Encoded, reached: float) -> str | None:
    """Say in one line how far a file is from the size ratio that was asked for; None within 3 %, or if none was."""
    stated = settings_of(encoded)
    asked = stated.size_ratio
    if asked is None or abs(reached / asked - 1) <= SIZE_RATIO_TOLERANCE:
        return None
    finest = isinstance(stated, TinyVAESettings) and stated.qp >= FINEST_QP
    reason = "the codec has no finer QP" if finest else "the grid of QPs is coarser here"
    return f"asked {asked:g}, reached {reached:.4g}: {reason}"
