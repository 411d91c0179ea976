"""Validate a codec's directory before a codec with its geometry is built.

A geometry of a few bytes can ask for tensors of any size. So the codec is first built without memory, on torch's meta
device, and every tensor it would have is looked for in the weights' own header; what is read then is no more than the
file holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError, KVCompressError
from kvcompress.format.limits import require_memory
from kvcompress.format.safetensors_file import opened
from kvcompress.format.strict_json import read_json
from tinyvae.quantize import LEVELS
from tinyvae.tables import TABLE_TOTAL, table_length

REMEDY = "Fit or fetch it again"
MOST_SIZE = 0xFFFF
_ARGUMENTS = ("groups", "shapes", "model", "recompute_layers", "origin", "shared_table")


def require_buildable(directory: Path) -> None:
    """Raise `CheckpointError` unless a codec's `config.json` asks for exactly the tensors that its weights hold.

    Raises:
        MemoryLimitError: The weights would take more memory than the user allows.
    """
    weights = directory / "model.safetensors"
    require_memory(2 * weights.stat().st_size, "loading the codec")
    try:
        config = read_json(directory / "config.json", "config.json")
        with opened(weights, "a codec's weights") as file:
            held = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
        wanted = _wanted(config, len(held))
    except KVCompressError as error:
        raise CheckpointError(error.what, REMEDY, path=directory) from error
    odd = sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))
    if odd:
        shapes = f"{held.get(odd[0], 'missing')} instead of {wanted.get(odd[0], 'none')}"
        what = f"{len(odd)} weights are not those of its config.json, first {odd[0]}: {shapes}"
        raise CheckpointError(what, REMEDY, path=directory)


def _wanted(config: Any, tensors: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a configuration asks for.

    Args:
        config: As `config.json` holds it.
        tensors: How many tensors there are; no list of parts can be longer.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError("config.json is no JSON object", REMEDY)
    arguments = {name: config[name] for name in _ARGUMENTS if name in config}
    try:
        for group in arguments["groups"]:
            if int(group["config"].get("prior_layers", 0)) > tensors:
                raise ValueError("more causal layers than tensors")
        with torch.device("meta"):
            codec = TinyVAECodec(**arguments)
            require_geometry(codec)
            return {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
    except KVCompressError:
        raise
    except Exception as error:  # whatever a constructor makes of numbers, texts and lists in each other's places
        raise CheckpointError(f"its geometry is impossible ({type(error).__name__}: {error})", REMEDY) from error


def require_geometry(codec: TinyVAECodec) -> None:
    """Raise `CheckpointError` unless the groups of a codec cover its layers, and each looks only at what is known."""
    shapes, first = codec.shapes, codec.recompute_layers + 1 if codec.recompute_layers else 0
    sizes = [size for shape in shapes for size in (shape.heads, shape.key_size, shape.value_size)]
    if not all(type(size) is int and 0 < size <= MOST_SIZE for size in sizes):
        raise CheckpointError(f"heads and head sizes must be integers from 1 to {MOST_SIZE}", REMEDY)
    covered = sorted(index for group in codec.groups for index in group)
    if not covered or covered != list(range(first, len(shapes))):
        raise CheckpointError(f"its groups are not the layers from {first} to {len(shapes) - 1}, each once", REMEDY)
    vocabulary = {codec.vae(group).config.vocab_size for group in range(len(codec.groups))}
    for group, layers in enumerate(codec.groups):
        config = codec.vae(group).config
        sound = sum(config.blocks) == sum(shapes[index].channels for index in layers)
        sound &= all(0 <= index < first for index in codec.conditioning[group].layers)
        sound &= all(
            0 <= lower < group and 0 < latents <= codec.vae(lower).config.rank
            for lower, latents in codec.lower[group].groups
        )
        if not sound or len(vocabulary) != 1:
            raise CheckpointError(f"the geometry of its group {group} contradicts its layers", REMEDY)


def require_finite(codec: TinyVAECodec) -> None:
    """Raise `CheckpointError` where a weight is NaN or infinite: every session would come out so."""
    odd = [name for name, tensor in codec.state_dict().items() if not bool(tensor.isfinite().all())]
    if odd:
        raise CheckpointError(f"{len(odd)} weights hold NaN or infinity, first {odd[0]}", REMEDY)


def require_tables(codec: TinyVAECodec) -> None:
    """Raise `CheckpointError` unless the tables of a codec are ones that its bits can be read with."""
    lengths: Sequence[int] = [table_length(level) for level in range(LEVELS)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    counts, offsets = codec.bank.counts, codec.bank.offsets
    sound = np.array_equal(offsets, starts) and bool((counts > 0).all())
    if not sound or not bool((np.add.reduceat(counts.astype(np.int64), starts[:-1]) == TABLE_TOTAL).all()):
        raise CheckpointError("its tables are damaged", REMEDY)
