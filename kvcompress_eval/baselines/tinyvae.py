"""This project's codec as one of the suite: its promised quality words, or a curve over QPs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcompress.codec.directory import load_codec
from kvcompress.codec.promise import QUALITIES
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.settings import TinyVAESettings
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import Encoded
from kvcompress.hf import recompute_with
from kvcompress.hub.bundled import codec_parts
from kvcompress.hub.places import find_codec
from kvcompress.rate.link import decoder_of
from kvcompress.snapshot import KVSnapshot
from tinyvae.quantize import LEVELS_PER_OCTAVE

CODEC_FILES = ("config.json", "model.safetensors")
_OCTAVES_FINER = 2


class TinyVAEPoint:
    """A TinyVAE codec at one of its quality words, or at a QP.

    A session is stored at a quality word as a user's would be: one unlike the codec's own finer, or in another way.

    Args:
        codec: The codec.
        name: Name in the report.
        family: Name of the curve.
        codec_bytes: Size of its checkpoint.
        qp: Quantisation parameter; None at a quality word that latents alone do not keep.
        quality: The quality word, None for a QP without one.
    """

    kind = TinyVAECodec.kind

    def __init__(
        self, codec: TinyVAECodec, name: str, family: str, codec_bytes: int, qp: int | None, quality: str | None
    ) -> None:
        self.codec, self.name, self.family, self.codec_bytes = codec, name, family, codec_bytes
        self.qp, self.quality = qp, quality

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the codec."""
        return self.codec.fingerprint

    @property
    def identity(self) -> str:
        """Digest of the codec with its promises."""
        return identity(self.codec)

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code as this point's quality is stored, or at its QP."""
        if self.quality is not None:
            return encode_at_quality(self.codec, snapshot, self.quality)
        assert self.qp is not None
        return self.codec.encode(snapshot, self.qp)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Decode, whatever the session was stored with."""
        return decoder_of(encoded, self.codec).decode(encoded)


def points(codec: TinyVAECodec, family: str, codec_bytes: int, *, curve: bool = False) -> list[TinyVAEPoint]:
    """Return the quality words that a codec promises, finest first.

    Args:
        codec: The codec.
        family: Name of the curve.
        codec_bytes: Size of its checkpoint.
        curve: Return a QP every half octave too, between the words and beyond; so of a codec without promises.
    """
    promised = [word for word in QUALITIES if word in codec.promises]
    named = [
        TinyVAEPoint(codec, f"{family}-{word}", family, codec_bytes, codec.promises[word].qp, word) for word in promised
    ]
    if promised and not curve:
        return named
    qps = [point.qp for point in named if point.qp is not None]
    finest = max(qps, default=4 * LEVELS_PER_OCTAVE) + _OCTAVES_FINER * LEVELS_PER_OCTAVE
    between = range(0, finest + 1, LEVELS_PER_OCTAVE // 2)
    free = [qp for qp in between if all(abs(qp - known) >= LEVELS_PER_OCTAVE // 4 for known in qps)]
    others = [TinyVAEPoint(codec, f"{family}-r{qp}", family, codec_bytes, qp, None) for qp in free]
    return sorted([*named, *others], key=lambda point: float("-inf") if point.qp is None else -point.qp)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One codec of a directory.

    Attributes:
        recompute_layers: m, how many layers it leaves to the model.
        codec: Ready to decode.
        codec_bytes: Of its files on disk.
    """

    recompute_layers: int
    codec: TinyVAECodec
    codec_bytes: int


def held_in(place: str, model: Any, tokenizer: Any) -> Iterator[Held]:
    """Yield every codec of a directory or bundled name, from coding all layers to leaving the first ones to the model.

    Raises:
        CheckpointError: There is none, or one is damaged.
    """
    for layers, part in codec_parts(find_codec(place)).items():
        codec = load_codec(place, layers)
        codec.recompute = recompute_with(model, tokenizer)
        yield Held(layers, codec, codec_size_bytes(part))


def codec_size_bytes(directory: Path) -> int:
    """Return the bytes of a codec's files."""
    return sum((directory / file).stat().st_size for file in CODEC_FILES)


def identity(codec: TinyVAECodec) -> str:
    """Return a digest of a codec and of what it promises: calibrated again it stores sessions in another way."""
    promises = {name: promise.to_json() for name, promise in codec.promises.items()}
    stated = [codec.fingerprint, promises, codec.fitted.get("known")]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def stored_in_words(encoded: Encoded) -> str:
    """Return how a file holds its session: latents, residual (latents and what they do not reach), int8, lossless."""
    if encoded.codec != TinyVAECodec.kind:
        return encoded.codec
    return "latents" if TinyVAESettings.from_json(encoded.settings).residual_qp is None else "residual"
