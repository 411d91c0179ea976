"""Encode at a quality word: with the verified setting, or with a finer one for sessions out of distribution."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
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
from tinyvae.offsets import worn_offset

SHORT_TOKENS = 256
"""In shorter sessions the newest tokens are so many that bits tell little at the coarsest word."""

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

    What continues an earlier file is coded coarser than its tokens' ages of today ask for, see `continued`.

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
        settings = _stated(setting, settings)
        decoded, encoded = analysis.tried(setting.qp, settings, setting.residual_qp, checked=True)
        if _is_unlike(analysis, stored, decoded, encoded, start):
            continue
        coarser = continued(codec, setting, start, snapshot.tokens)
        if coarser == setting or coarser.qp is None:
            return encoded
        return analysis.encode(coarser.qp, settings, residual_qp=coarser.residual_qp)
    last = codec.promises[FALLBACK].setting if FALLBACK in codec.promises else Setting(LOSSLESS)
    return weightless(snapshot, last, CommonSettings(quality=quality, stored=last.kind, unlike=True))


def continued(codec: TinyVAECodec, setting: Setting, start: int, end: int) -> Setting:
    """Return the setting of tokens [start, end) that continue an earlier file: coarser, for they will be old soon.

    The codec codes the newest tokens of a session finest, and in segments each token is among the newest once. On the
    bundled model at "transparent", 1,024 tokens in segments of 32 take 1.77 times the bytes of one file so, at its KL
    right after every append; without, 2.70 times at two thirds of that KL (docs/log.md).

    Args:
        codec: The codec.
        setting: Of a session that is coded at once.
        start: Tokens before; at 0 the setting stays as it was verified.
        end: Tokens of the session so far.
    """
    if not start or start >= end or setting.qp is None:
        return setting
    by_group = [worn_offset(codec.vae(group).age_offset, start, end) for group in range(len(codec.groups))]
    coarser = max(round(fmean(by_group)), -setting.qp)
    residual = None if setting.residual_qp is None else max(setting.residual_qp + coarser, 0)
    return replace(setting, qp=setting.qp + coarser, residual_qp=residual)


def _is_unlike(analysis: Analysis, stored: str, decoded: KVSnapshot, encoded: Encoded, start: int) -> bool:
    """Tell whether a session, or what continues one, is far outside what the codec knows at a quality.

    It is judged at the steps of a session that ends here, whatever steps it is stored in. At the coarsest word the
    newest tokens take nearly all bits, so turns and short sessions of any kind look unlike: of 24 ordinary sessions of
    128 tokens 20, which lose a third of what the word allows. Their bits are judged at the next finer word.
    """
    codec, exact = analysis.codec, analysis.snapshot
    figures, tokens = figures_of_file(exact, encoded, decoded, start), exact.tokens - start
    if not knows(codec, stored) or not is_out_of_distribution(codec, stored, figures, tokens):
        return False
    finer = QUALITIES[-2]
    of_error_alone = is_out_of_distribution(codec, stored, replace(figures, bits_per_token=0.0), tokens)
    is_long = not start and tokens >= SHORT_TOKENS
    if is_long or stored != QUALITIES[-1] or of_error_alone or not knows(codec, finer):
        return True
    setting = codec.promises[finer].setting if finer in codec.promises else Setting(LOSSLESS)
    if setting.qp is None:
        return True
    decoded, encoded = analysis.tried(setting.qp, residual_qp=setting.residual_qp)
    return is_out_of_distribution(codec, finer, figures_of_file(exact, encoded, decoded, start), tokens)


def weightless(snapshot: KVSnapshot, setting: Setting, settings: CommonSettings) -> Encoded:
    """Encode in a setting that needs no codec; the file's settings say so as `stored`."""
    codec = Int8Codec() if setting.kind == INT8 else LosslessCodec()
    return codec.encode(snapshot, _stated(setting, settings))


def _stated(setting: Setting, settings: CommonSettings) -> CommonSettings:
    return settings if setting.kind == LATENTS or settings.stored else replace(settings, stored=setting.kind)
