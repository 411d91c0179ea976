"""Encode at a quality word: with the verified setting, or with a finer one for sessions out of distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.out_of_distribution import (
    figures_of_file,
    is_out_of_distribution,
    knows,
    opens_out_of_distribution,
)
from kvcompress.codec.promise import FALLBACK, INT8, LATENTS, LOSSLESS, QUALITIES, Setting
from kvcompress.codec.settings import CommonSettings
from kvcompress.format.container import Encoded
from kvcompress.snapshot import KVSnapshot

if TYPE_CHECKING:
    from kvcompress.codec.analysis import Analysis
    from kvcompress.codec.tinyvae import TinyVAECodec


def encode_at_quality(codec: TinyVAECodec, snapshot: KVSnapshot, quality: str, start: int = 0) -> Encoded:
    """Encode in the way that was verified to keep a quality word: latents, latents and residual, or without loss.

    It was verified on ordinary sessions. One that turns out to be unlike them is coded as the next finer quality is,
    and so on until it is ordinary there, and last by int8 where that was verified to be transparent, else without loss;
    so is one that opens with a token that none of them did.
    Its settings then say `unlike` and as `stored` the finer quality, "int8" or "lossless". Where latents alone do
    not keep a quality, `stored` names its way.

    Args:
        codec: The codec.
        snapshot: The session.
        quality: The word.
        start: The first token whose keys and values the layers hold, where an earlier file holds those before it.

    Raises:
        InputError: The codec does not promise the quality.
    """
    codec.promise_of(quality)
    codec.require_compatible(snapshot)
    finer = QUALITIES[QUALITIES.index(quality) :: -1] if quality in QUALITIES else (quality,)
    if opens_out_of_distribution(codec, snapshot.token_ids):
        finer = ()
    analysis: Analysis | None = None
    for stored in (name for name in finer if name in codec.promises):
        setting = codec.promises[stored].setting
        settings = CommonSettings(quality=quality)
        if stored != quality:
            settings = replace(settings, stored=stored, unlike=True)
        if setting.qp is None:
            return weightless(snapshot, setting, settings)
        analysis = analysis or codec.analyse(snapshot)
        decoded, encoded = analysis.tried(setting.qp, _stated(setting, settings), setting.residual_qp, checked=True)
        if not knows(codec, stored) or not is_out_of_distribution(
            codec, stored, figures_of_file(snapshot, encoded, decoded, start), snapshot.tokens - start
        ):
            return encoded
    last = codec.promises[FALLBACK].setting if FALLBACK in codec.promises else Setting(LOSSLESS)
    return weightless(snapshot, last, CommonSettings(quality=quality, stored=last.kind, unlike=True))


def weightless(snapshot: KVSnapshot, setting: Setting, settings: CommonSettings) -> Encoded:
    """Encode in a setting that needs no codec; the file's settings say so as `stored`."""
    codec = Int8Codec() if setting.kind == INT8 else LosslessCodec()
    return codec.encode(snapshot, _stated(setting, settings))


def _stated(setting: Setting, settings: CommonSettings) -> CommonSettings:
    return settings if setting.kind == LATENTS or settings.stored else replace(settings, stored=setting.kind)
