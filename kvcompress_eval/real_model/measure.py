"""Measure one codec on one session: a true file, loaded, decoded, restored, resumed. One row comes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.settings import settings_of
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import Encoded, load, save
from kvcompress.hf import restore
from kvcompress.hf.generation import feed
from kvcompress.rate.link import decoder_of
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.tinyvae import identity, stored_in_words
from kvcompress_eval.real_model.subject import Subject
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.rows import Row


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A codec at one of its settings.

    Attributes:
        kind: "ours", or the family of a baseline.
        codec: The codec's name in tables.
        name: Of the setting: a quality word, or a baseline's rate.
        fingerprint: Of the codec; rows of another are not this one's.
        encode: Codes a snapshot.
        decode: Returns the snapshot of a file.
    """

    kind: str
    codec: str
    name: str
    fingerprint: str
    encode: Callable[[KVSnapshot], Encoded]
    decode: Callable[[Encoded], KVSnapshot]

    def key(self, session_digest: str) -> tuple[str, ...]:
        """Return what the row of a session is known by."""
        return (self.kind, self.codec, self.name, self.fingerprint[:16], session_digest)


def our_point(name: str, codec: TinyVAECodec, quality: str) -> Point:
    """Return one of this project's codecs at a quality word; a session unlike the codec's own may need another."""
    return Point(
        "ours",
        name,
        quality,
        identity(codec),
        lambda snapshot: encode_at_quality(codec, snapshot, quality),
        lambda encoded: decoder_of(encoded, codec).decode(encoded),
    )


@torch.inference_mode()
def measure(model: Any, point: Point, subject: Subject, path: Path) -> Row:
    """Return the row of a point on a session.

    Args:
        model: The model of both caches.
        point: What is measured.
        subject: The session.
        path: Where its file is written, to be sized by `stat` and read back.
    """
    clock = [time.perf_counter()]
    save(path, point.encode(subject.snapshot), force=True)
    clock.append(time.perf_counter())
    encoded = load(path)
    decoded = point.decode(encoded)
    clock.append(time.perf_counter())
    cache = restore(decoded, model)
    logits = feed(model, cache, subject.chosen.following, subject.snapshot.tokens)
    return {
        **subject.to_json(),
        "kind": point.kind,
        "codec": point.codec,
        "point": point.name,
        "stored": stored_in_words(encoded),
        "unlike": settings_of(encoded).unlike,
        "file_bytes": path.stat().st_size,
        **damage(subject.exact, logits).to_json(),
        "encode_seconds": clock[1] - clock[0],
        "decode_seconds": clock[2] - clock[1],
    }
