"""Facts of a codec, read from its `config.json` alone and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcompress.codec.promise import FALLBACK, Promise, promises_from_json
from kvcompress.errors import CheckpointError, about
from kvcompress.hub.bundled import codec_parts, read_config
from kvcompress.hub.hub_id import CODEC_FILES

RAW_BITS = 16
"""Bits of a cached number in a size ratio."""

SHORT = 12
"""Characters of a digest in a table."""


@dataclass(frozen=True, slots=True)
class Part:
    """One codec of a directory.

    Attributes:
        recompute_layers: Layers that the model runs when a session is restored.
        directory: Where its files lie.
        codec_bytes: Of its files.
        fingerprint: Of geometry, weights and tables, as the fit stated it; None in older codecs.
        promises: By quality word, without the fallback.
        coded_ratios: Of each quality that latents keep, raw bits over the bits of its own sections, as seen in
            calibration. A file also holds token ids and header, so its size ratio is smaller.
    """

    recompute_layers: int
    directory: Path
    codec_bytes: int
    fingerprint: str | None
    promises: Mapping[str, Promise]
    coded_ratios: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-able."""
        return {
            "recompute_layers": self.recompute_layers,
            "codec_bytes": self.codec_bytes,
            "fingerprint": self.fingerprint,
            "promises": {name: promise.to_json() for name, promise in self.promises.items()},
            "coded_ratios": dict(self.coded_ratios),
        }


@dataclass(frozen=True, slots=True)
class CodecFacts:
    """A directory of codecs of one model.

    Attributes:
        directory: Where it lies.
        model_name: Label of the model; empty in older codecs.
        model: Hashes of the model by part: config, weights, rope, tokenizer.
        origin: Where the model's caches come from, as `Origin.to_json`; empty in older codecs.
        vocabulary: Digest of which id stands for which token; None in codecs that do not say.
        layers: How many the model has.
        parts: One or more, by how many layers each recomputes.
    """

    directory: Path
    model_name: str
    model: Mapping[str, str | None]
    origin: Mapping[str, Any]
    vocabulary: str | None
    layers: int
    parts: tuple[Part, ...]

    @property
    def codec_bytes(self) -> int:
        """Size of all files."""
        return sum(part.codec_bytes for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-able, without the origin."""
        return {
            "directory": str(self.directory),
            "model_name": self.model_name,
            "model": dict(self.model),
            "layers": self.layers,
            "recompute_layers": [part.recompute_layers for part in self.parts],
            "codec_bytes": self.codec_bytes,
            "parts": [part.to_json() for part in self.parts],
        }


def read_facts(directory: Path) -> CodecFacts:
    """Return what the codecs of a directory say of themselves.

    Raises:
        CheckpointError: There is none, a `config.json` is damaged, or they are of different models.
    """
    configs = {layers: (part, read_config(part)) for layers, part in codec_parts(directory).items()}
    if not configs:
        raise CheckpointError("no codec here", "Make one with `kvcompress fit`", path=directory)
    try:
        for _, config in configs.values():
            _require_texts(config)
        models = {tuple(sorted(config["model"].items())) for _, config in configs.values()}
        if len(models) > 1:
            raise CheckpointError("its codecs are of different models", "Keep them apart", path=directory)
        first = next(iter(configs.values()))[1]
        origin = first.get("origin") or {}
        with about(directory):
            parts = tuple(_part(layers, part, config) for layers, (part, config) in configs.items())
        name = str(origin.get("model_name", ""))
        vocabulary = (first.get("fitted") or {}).get("vocabulary")
        return CodecFacts(directory, name, dict(first["model"]), origin, vocabulary, len(first["shapes"]), parts)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"config.json is damaged ({type(error).__name__}: {error})"
        raise CheckpointError(what, "Fit or fetch it again", path=directory) from error


def _require_texts(config: Mapping[str, Any]) -> None:
    """Raise `TypeError` unless the digests of a configuration are texts, which are shown and compared as such."""
    digests = [*config["model"].values(), (config.get("fitted") or {}).get("fingerprint")]
    if not all(digest is None or isinstance(digest, str) for digest in digests):
        raise TypeError("a digest is no text")


def _part(layers: int, directory: Path, config: Mapping[str, Any]) -> Part:
    promises = promises_from_json(config.get("promises"))
    fitted = config.get("fitted") or {}
    tiers = (fitted.get("known") or {}).get("tiers", {})
    raw_bits = RAW_BITS * sum(heads * (keys + values) for heads, keys, values in config["shapes"])
    return Part(
        layers,
        directory,
        sum(path.stat().st_size for name in CODEC_FILES if (path := directory / name).is_file()),
        fitted.get("fingerprint"),
        {name: promise for name, promise in promises.items() if name != FALLBACK},
        {name: raw_bits / bits for name, tier in tiers.items() if (bits := float(tier["bits_per_token"][0])) > 0},
    )
