"""From what the user asks for to a rate: a quality word or a size ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.promise import FALLBACK, INT8, LATENTS, LOSSLESS, QUALITIES, Setting
from kvcompress.codec.tinyvae import HIGHEST_RATE, TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.fit.out_of_distribution import figures_of_file, is_unlike, knows, opens_unlike
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.snapshot import KVSnapshot
from tinyvae.quantize import LEVELS_PER_OCTAVE

SIZE_RATIO_TOLERANCE = 0.03
FINEST_RATE = HIGHEST_RATE // 2


def encode_at_quality(codec: TinyVAECodec, snapshot: KVSnapshot, quality: str) -> Encoded:
    """Encode in the way that was verified to keep a quality word: latents, latents and residual, or without loss.

    It was verified on ordinary sessions. One that turns out to be unlike them is coded as the next finer quality is,
    and so on until it is ordinary there, and last by int8 where that was verified to be transparent, else without loss;
    so is one that opens with a token that none of them did.
    Its settings then hold `unlike`: true and `stored`: the finer quality, "int8" or "lossless". Where latents alone do
    not keep a quality, `stored` names its way.

    Raises:
        InputError: The codec does not promise the quality.
    """
    codec.promise_of(quality)
    finer = QUALITIES[QUALITIES.index(quality) :: -1] if quality in QUALITIES else (quality,)
    if opens_unlike(codec, snapshot.token_ids):
        finer = ()
    for stored in (name for name in finer if name in codec.promises):
        setting = codec.promises[stored].setting
        settings = {"quality": quality} if stored == quality else {"quality": quality, "stored": stored, "unlike": True}
        encoded = encode_in(codec, snapshot, setting, settings)
        if not knows(codec, stored) or setting.kind == LOSSLESS:
            return encoded
        if not is_unlike(codec, stored, figures_of_file(snapshot, encoded, codec.decode(encoded)), snapshot.tokens):
            return encoded
    last = codec.promises[FALLBACK].setting if FALLBACK in codec.promises else Setting(LOSSLESS)
    return encode_in(codec, snapshot, last, {"quality": quality, "stored": last.kind, "unlike": True})


def encode_in(codec: TinyVAECodec, snapshot: KVSnapshot, setting: Setting, settings: Mapping[str, Any]) -> Encoded:
    """Encode in a setting; where that is more than latents, the file's settings say so as `stored`."""
    stated = dict(settings)
    if setting.kind != LATENTS:
        stated.setdefault("stored", setting.kind)
    if setting.rate is not None:
        return codec.encode(snapshot, setting.rate, stated, residual_rate=setting.residual_rate)
    weightless = Int8Codec() if setting.kind == INT8 else LosslessCodec()
    return weightless.encode(snapshot, stated)


def encode_at_size_ratio(codec: TinyVAECodec, snapshot: KVSnapshot, size_ratio: float) -> Encoded:
    """Encode at the finest rate whose file is at least `size_ratio` times smaller than the raw cache.

    Where that overshoots by more than 3 % the closest of the next finer file and files between is returned.

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
    if overshoot <= 1 + SIZE_RATIO_TOLERANCE or best == FINEST_RATE:
        return files[best]
    if size_ratio / reached(best + 1) < min(overshoot, 1 + SIZE_RATIO_TOLERANCE):
        return files[best + 1]
    between = _newest_finer(codec, snapshot, size_ratio, best)
    candidates = (files[best], files[best + 1], *between)
    return min(candidates, key=lambda file: abs(math.log(snapshot.raw_bytes / len(to_bytes(file)) / size_ratio)))


def _newest_finer(codec: TinyVAECodec, snapshot: KVSnapshot, size_ratio: float, rate: int) -> list[Encoded]:
    """Return files between two rates, where the grid is too coarse: as many of the newest tokens as fit are finer.

    Only few tokens are, by a whole octave, because a file has to say which.
    """
    found, low, high = list[Encoded](), 1, snapshot.tokens // 4
    while low <= high:
        count = (low + high) // 2
        offsets = torch.zeros(snapshot.tokens, dtype=torch.int64)
        offsets[-count:] = LEVELS_PER_OCTAVE
        found.append(codec.encode(snapshot, rate, {"size_ratio": size_ratio}, offsets))
        if snapshot.raw_bytes / len(to_bytes(found[-1])) >= size_ratio:
            low = count + 1
        else:
            high = count - 1
    return found


def size_ratio_note(encoded: Encoded, reached: float) -> str | None:
    """Say in one line how far a file is from the size ratio that was asked for; None within 3 %."""
    asked = encoded.settings["size_ratio"]
    if abs(reached / asked - 1) <= SIZE_RATIO_TOLERANCE:
        return None
    finest = encoded.settings["rate"] >= FINEST_RATE
    reason = "the codec has no finer rate" if finest else "the grid of rates is coarser here"
    return f"asked {asked:g}, reached {reached:.4g}: {reason}"
