"""Notes on an encoded file that its size alone does not show, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvcompress.codec.at_hand import promise_of_file
from kvcompress.codec.promise import promise_in_words
from kvcompress.codec.settings import TinyVAESettings, settings_of
from kvcompress.codec.size_ratio import size_ratio_note
from kvcompress.format.container import Encoded
from kvcompress.rate.link import Choice, prefill_note


def notes_of(encoded: Encoded, reached: float, choice: Choice | None, codec: str | Path | None) -> Iterator[str]:
    """Yield the notes of a file, without a full stop.

    Args:
        encoded: The file.
        reached: Its size ratio.
        choice: How every number of recomputed layers did, where a link chose.
        codec: That was named for it, None where it was found.
    """
    stated = settings_of(encoded)
    for told in (None if choice is None else prefill_note(choice), size_ratio_note(encoded, reached)):
        if told is not None:
            yield told
    if isinstance(stated, TinyVAESettings) and stated.other_weights is not None:
        yield f"{stated.other_weights.words()}: only these can go on from it"
    if stated.stored in ("residual", "lossless") and not stated.unlike:
        promise = promise_of_file(codec, encoded.codec_fingerprint, stated)
        how = promise_in_words(promise) if promise else f"stored as {stated.stored}"
        yield f"latents alone do not keep {stated.quality!r} on this model: {how}"
    if stated.unlike:
        told = "this session differs from those that the codec was calibrated on"
        yield f"{told}: stored at {stated.stored!r} instead of {stated.quality!r}"
    certificate = stated.certificate
    if certificate is not None and not isinstance(stated, TinyVAESettings):
        told = f"no QP of the codec keeps a mean KL of {certificate.max_kl_nats:g} nats"
        yield f"{told}: stored by the codec {encoded.codec!r}, which loses {certificate.kl_nats:.2g}"
