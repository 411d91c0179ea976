"""Find baselines by name: families of this room, bundled codecs, codec directories."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kvcompress.codec.at_hand import codec_for
from kvcompress.codec.facts import CodecFacts, read_facts
from kvcompress.errors import InputError
from kvcompress.hf import fingerprint
from kvcompress.hub.places import find_codec
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.tinyvae import held_in, points

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
"""Modules of this room; each has `family(calibration) -> list[Baseline]`."""

FITTED = ("cachegen", "kvtc", "kvtc_ideal")
"""Those that learn from calibration sessions."""


@dataclass(frozen=True, slots=True)
class Own:
    """What is measured of this project's codec.

    Attributes:
        directory: Codec directory or name that "tinyvae" stands for; None for the one at hand that fits the model.
        curve: Measure fixed QPs too, not only the quality words that a codec promises.
        trade_off: Measure the codecs that leave layers to the model too.
    """

    directory: str | None = None
    curve: bool = False
    trade_off: bool = False


def resolve(names: Sequence[str]) -> list[str]:
    """Return the families asked for, "all" spelled out, each once.

    Where a codec directory is named, "all" means the baselines: the bundled codec belongs to the bundled model.

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


def named_codecs(names: Sequence[str], own: Own) -> list[CodecFacts]:
    """Return what the codecs that were named say of themselves, before anything is loaded.

    Args:
        names: As `resolve` returned them.
        own: What is measured of this project's codecs.

    Raises:
        CheckpointError: There is none where one is named, or it is damaged.
    """
    places = [own.directory if name == OWN else name for name in names if name not in FAMILIES]
    return [read_facts(find_codec(place)) for place in places if place is not None]


def build(name: str, calibration: Calibration, own: Own | None = None, *, first: bool = True) -> list[Baseline]:
    """Return the points of one family, fitted where the family needs it.

    Args:
        name: One of `FAMILIES`, "tinyvae", or a codec directory.
        calibration: What it may be fitted to.
        own: What is measured of this project's codecs.
        first: Whether it is the first of this project's codecs in the run; the others show their names.

    Raises:
        CheckpointError: There is no codec, or it is damaged.
        MismatchError: It is of another model.
    """
    if name in FAMILIES:
        return list(importlib.import_module(f"kvcompress_eval.baselines.{name}").family(calibration))
    own = own or Own()
    mine = fingerprint(calibration.model, calibration.tokenizer)
    place = name if name != OWN else own.directory or str(codec_for(asdict(mine)))
    named = [] if first else [Path(place).name]
    found = list[Baseline]()
    for held in held_in(place, calibration.model, calibration.tokenizer):
        held.codec.model_fingerprint.require_match(mine)
        if held.recompute_layers and not own.trade_off and found:
            break
        parts = [*named, *([f"m={held.recompute_layers}"] if held.recompute_layers and found else [])]
        family = f"{OWN}:{' '.join(parts)}" if parts else OWN
        found += points(held.codec, family, held.codec_bytes, curve=own.curve)
    return found


def build_all(
    names: Sequence[str], calibration: Calibration, own: Own | None = None
) -> Iterator[tuple[str, list[Baseline], str | None]]:
    """Yield for each family its points, or none and the reason why it cannot be measured."""
    ours = [name for name in names if name not in FAMILIES]
    for name in names:
        try:
            yield name, build(name, calibration, own, first=name in ours[:1]), None
        except Exception as error:  # one family's failure must not cost the others their figures
            yield name, [], f"{type(error).__name__}: {error}"
