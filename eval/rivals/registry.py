"""Find rivals by name: families of this room, bundled codecs, codec directories."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.rivals.protocol import Calibration, Rival
from eval.rivals.tinyvae import points
from kvcompress.codec_places import find_codec
from kvcompress.errors import InputError
from kvcompress.hf import recompute_with
from kvcompress.zoo import DEFAULT_CODEC, load_codec

OWN = "tinyvae"
FAMILIES = (
    "tokens_only",
    "raw16",
    "zstd",
    "lossless",
    "int8",
    "kivi",
    "cachegen",
    "turboquant",
    "kvtc",
    "kvtc_ideal",
    "eviction_sink_recent",
    "eviction_key_norm",
    "eviction_attention",
)
"""Modules of this room; each has `family(calibration) -> list[Rival]`."""


def resolve(names: Sequence[str]) -> list[str]:
    """Return the families asked for, "all" spelled out, each once.

    Where a codec directory is named, "all" means the rivals: the bundled codec belongs to the bundled model.

    Raises:
        InputError: A name is neither a family nor a codec at hand.
    """
    known = (OWN, *FAMILIES)
    everything = FAMILIES if any(name not in (*known, "all") for name in names) else known
    wanted = [part for name in names for part in (everything if name == "all" else (name,))]
    for name in wanted:
        if name not in known and not Path(name).is_dir():
            remedy = f"Known are {', '.join(('all', *known))}, or name a codec directory"
            raise InputError(f"unknown codec {name!r}", remedy)
    return list(dict.fromkeys(wanted))


def build(name: str, calibration: Calibration, *, first: bool = True) -> list[Rival]:
    """Return the points of one family, fitted where the family needs it.

    Args:
        name: One of `FAMILIES`, "tinyvae" for the bundled codec, or a codec directory.
        calibration: What it may be fitted to.
        first: Whether it is the first of this project's codecs in the run; the others show their names.
    """
    if name in FAMILIES:
        return list(importlib.import_module(f"eval.rivals.{name}").family(calibration))
    reference = DEFAULT_CODEC if name == OWN else name
    directory = find_codec(reference)
    family = OWN if first else f"{OWN}:{Path(name).name}"
    codec = load_codec(reference)
    codec.recompute = recompute_with(calibration.model, calibration.tokenizer)
    return list(points(codec, family, (directory / "model.safetensors").stat().st_size))


def build_all(names: Sequence[str], calibration: Calibration) -> Iterator[tuple[str, list[Rival], str | None]]:
    """Yield for each family its points, or none and the reason why it cannot be measured."""
    own = [name for name in names if name not in FAMILIES]
    for name in names:
        try:
            yield name, build(name, calibration, first=name in own[:1]), None
        except Exception as error:  # one family's failure must not cost the others their figures
            yield name, [], f"{type(error).__name__}: {error}"
