"""The codecs of a run: all that a directory holds, from coding every layer to leaving the first ones to the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcompress.codec.promise import QUALITIES
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress_eval.baselines.tinyvae import held_in


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One codec.

    Attributes:
        name: In tables: "m=3" of the directory that was given, "NAME m=3" of a further one.
        codec: Ready to decode.
        codec_bytes: Of its files on disk.
    """

    name: str
    codec: TinyVAECodec
    codec_bytes: int

    @property
    def qualities(self) -> tuple[str, ...]:
        """The quality words that it promises."""
        return tuple(word for word in QUALITIES if word in self.codec.promises)

    @property
    def share(self) -> float:
        """Share of the model's layers that it leaves to the model."""
        return self.codec.recompute_layers / len(self.codec.shapes)

    def to_json(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {
            "name": self.name,
            "recompute_layers": self.codec.recompute_layers,
            "share": self.share,
            "codec_bytes": self.codec_bytes,
            "fingerprint": self.codec.fingerprint,
            "fitted_sessions": self.codec.fitted.get("sessions"),
            "not_promised": [word for word in QUALITIES if word not in self.codec.promises],
        }


def find_codecs(directory: str, further: Iterable[str], model: Any, tokenizer: Any) -> list[Measured]:
    """Return every codec of a directory and of further ones, given as NAME=DIR.

    Raises:
        InputError: A setting is not NAME=DIR, a name occurs twice, or nothing is promised by any codec.
    """
    pairs = [("", directory), *map(_named, further)]
    found = [one for name, place in pairs for one in _of_directory(name, place, model, tokenizer)]
    if len({one.name for one in found}) < len(found):
        raise InputError("two codecs have one name", "Give each --setting another NAME")
    if not any(one.qualities for one in found):
        remedy = "Verify it with `kvcompress calibrate CODEC --sessions FILE`"
        raise InputError("the codec promises no quality, so there is nothing to measure", remedy, path=Path(directory))
    return found


def _named(setting: str) -> tuple[str, str]:
    name, _, place = setting.partition("=")
    if not name or not place:
        raise InputError(f"{setting!r} is no setting", "Give it as NAME=DIR")
    return f"{name} ", place


def _of_directory(name: str, place: str, model: Any, tokenizer: Any) -> Sequence[Measured]:
    return [
        Measured(f"{name}m={one.recompute_layers}", one.codec, one.codec_bytes)
        for one in held_in(place, model, tokenizer)
    ]
