"""Find rivals by name: families of this room, bundled codecs, codec directories."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.rivals.protocol import Calibration, Rival
from eval.rivals.tinyvae import points
from kvcompress.errors import InputError
from kvcompress.zoo import DEFAULT_CODEC, find_checkpoint, load_codec

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

    Raises:
        InputError: A name is neither a family nor a codec at hand.
    """
    wanted = [part for name in names for part in ((OWN, *FAMILIES) if name == "all" else (name,))]
    for name in wanted:
        if name not in (OWN, *FAMILIES) and not Path(name).is_dir():
            known = ", ".join(("all", OWN, *FAMILIES))
            raise InputError(f"unknown codec {name!r}", f"Known are {known}, or name a codec directory")
    return list(dict.fromkeys(wanted))


def build(name: str, calibration: Calibration) -> list[Rival]:
    """Return the points of one family, fitted where the family needs it.

    Args:
        name: One of `FAMILIES`, "tinyvae" for the bundled codec, or a codec directory.
        calibration: What it may be fitted to.
    """
    if name in FAMILIES:
        return list(importlib.import_module(f"eval.rivals.{name}").family(calibration))
    reference = DEFAULT_CODEC if name == OWN else name
    directory = find_checkpoint(reference)
    family = OWN if name == OWN else Path(name).name
    return list(points(load_codec(reference), family, (directory / "model.safetensors").stat().st_size))


def build_all(names: Sequence[str], calibration: Calibration) -> Iterator[tuple[str, list[Rival], str | None]]:
    """Yield for each family its points, or none and the reason why it cannot be measured."""
    for name in names:
        try:
            yield name, build(name, calibration), None
        except Exception as error:  # one family's failure must not cost the others their figures
            yield name, [], f"{type(error).__name__}: {error}"
