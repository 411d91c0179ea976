"""What is known of a file's fidelity, in figures that a third party can compare with what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kvcompress.codec.promise import LOSSLESS, Promise, applying
from kvcompress.codec.settings import settings_of
from kvcompress.format.header_fields import Header

TOKENS = "tokens"
"""Kind of a file of token ids alone."""

BY_CODEC, BY_SESSION, EXACT, RECOMPUTED = "codec", "session", "lossless", "recomputed"
"""What a certificate rests on: sessions that the codec was measured on, the session itself, the identical bits, or
token ids that a model computes again."""


def certificate_of(header: Header, promises: Mapping[str, Promise]) -> dict[str, Any] | None:
    """Return what was measured of a file's fidelity, None where nothing was.

    Args:
        header: Of the file.
        promises: What its codec promises, by quality word.
    """
    if header.codec == TOKENS:
        return {"basis": RECOMPUTED}
    if header.codec == LOSSLESS:
        return {"basis": EXACT}
    settings = settings_of(header)
    if settings.certificate is not None:
        stated = {name: value for name, value in asdict(settings.certificate).items() if value is not None}
        return {"basis": BY_SESSION, **stated}
    promise = applying(promises, settings)
    if promise is None:
        return None
    losses = promise.losses()
    return {
        "basis": BY_CODEC,
        "quality": promise.quality,
        "sessions": promise.sessions,
        "kl_nats": losses["kl_nats"].measured,
        "max_kl_nats": losses["kl_nats"].bound,
        "max_context_lost": losses["context_lost"].bound,
        "min_top1_agreement": round(1 - losses["top1_lost"].bound, 12),
    }
