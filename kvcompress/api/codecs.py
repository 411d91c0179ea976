"""Codecs loaded once and kept, for who encodes and decodes many files of the same few."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from kvcompress.api.options import DEFAULT_QUALITY
from kvcompress.codec.at_hand import codec_for
from kvcompress.codec.directory import load_codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.promise import Promise
from kvcompress.codec.protocol import Codec
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.registry import codec_of
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import Encoded
from kvcompress.hf.partial_prefill import Recompute
from kvcompress.snapshot import KVSnapshot, ModelFingerprint


class LoadedCodecs:
    """Codecs that code all layers, by what asked for them.

    Args:
        codec: Name, directory or Hub id of the one to be taken; None takes those at hand that fit.
    """

    def __init__(self, codec: str | Path | None = None) -> None:
        self.codec = codec
        self._encoders: dict[ModelFingerprint | str, TinyVAECodec] = {}
        self._decoders: dict[str, Codec] = {}
        self._guard = threading.Lock()

    def encoder(self, snapshot: KVSnapshot, codec: str | Path | None = None) -> TinyVAECodec:
        """Return the codec of a snapshot's model, or one that is named; raises as `codec_for` and `load_codec` do."""
        named = codec or self.codec
        key = str(named) if named is not None else snapshot.origin.fingerprint
        with self._guard:
            if key not in self._encoders:
                place = named if named is not None else codec_for(asdict(snapshot.origin.fingerprint))
                self._encoders[key] = load_codec(place, 0)
            return self._encoders[key]

    def promises_of(self, fingerprint: str) -> Mapping[str, Promise]:
        """Return what the loaded codec of a fingerprint promises, by quality word; nothing where none is loaded."""
        with self._guard:
            found = [codec for codec in self._encoders.values() if fingerprint and codec.fingerprint == fingerprint]
        return found[0].promises if found else {}

    def encode(
        self,
        snapshot: KVSnapshot,
        *,
        quality: str | None = None,
        lossless: bool = False,
        codec: str | Path | None = None,
        start: int = 0,
    ) -> Encoded:
        """Encode a session, or what it holds from a token on.

        Args:
            snapshot: The session.
            quality: See `EncodeOptions`.
            lossless: Or the identical bits.
            codec: As for `encoder`.
            start: The first token whose keys and values the layers hold, where an earlier file holds those before it.

        Raises:
            InputError: Codec or quality cannot be used, or the session does not fit the format.
            MismatchError: The codec is of another model.
        """
        if lossless:
            return LosslessCodec().encode(snapshot)
        return encode_at_quality(self.encoder(snapshot, codec), snapshot, quality or DEFAULT_QUALITY, start)

    def decode(self, encoded: Encoded, recompute: Recompute | None = None) -> KVSnapshot:
        """Return the snapshot of a file; raises as `codec_of` and the codec's `decode` do."""
        if recompute is not None or not encoded.codec_fingerprint:
            return codec_of(encoded, self.codec, recompute).decode(encoded)
        return self._decoder(encoded).decode(encoded)

    def layers(self, encoded: Encoded) -> int:
        """Return how many layers files of a learned codec have; raises as `codec_of` does."""
        codec = self._decoder(encoded)
        return len(codec.shapes) if isinstance(codec, TinyVAECodec) else 0

    def _decoder(self, encoded: Encoded) -> Codec:
        key = f"{encoded.codec_fingerprint} {'exact' in encoded.sections}"
        with self._guard:
            if key not in self._decoders:
                self._decoders[key] = codec_of(encoded, self.codec)
            return self._decoders[key]


__all__ = ["LoadedCodecs"]
