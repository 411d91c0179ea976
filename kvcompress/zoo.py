"""Bundled checkpoints by name: where they lie and what their weights must hash to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvcompress.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from kvcompress.codec import TinyVAECodec

DEFAULT_MODEL = "reference-lm"
DEFAULT_CODEC = "reference-lm-tinyvae"


def checkpoint_root() -> Path:
    """Return the directory of bundled checkpoints: inside the package when installed, else in the checkout."""
    packaged = Path(__file__).parent / "checkpoints"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "checkpoints"


def bundled() -> dict[str, str]:
    """Return the names of the bundled checkpoints and the sha256 of their weights."""
    index = checkpoint_root() / "index.json"
    if not index.is_file():
        raise CheckpointError("no bundled checkpoints here", "Name a directory instead", path=checkpoint_root())
    names: dict[str, str] = json.loads(index.read_text())
    return names


def is_bundled(name: str) -> bool:
    """Return whether a name is that of a bundled checkpoint; nothing is, where none came along."""
    return (checkpoint_root() / "index.json").is_file() and name in bundled()


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Return the directory of a bundled name, its weights verified, or of a path.

    Raises:
        CheckpointError: It is neither, or the bundled weights are damaged.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    known = bundled()
    if str(name_or_path) not in known:
        raise CheckpointError("neither a directory nor a bundled checkpoint", f"Bundled: {', '.join(known)}", path=path)
    directory = checkpoint_root() / str(name_or_path)
    if weights_digest(directory) != known[str(name_or_path)]:
        raise CheckpointError("the bundled weights are damaged", "Install again", path=directory)
    return directory


def weights_digest(directory: Path) -> str:
    """Return the sha256 of a checkpoint's weights file."""
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError("model.safetensors is missing", "Install again", path=directory)
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def load_codec(name_or_path: str | Path = DEFAULT_CODEC, recompute_layers: int | None = None) -> TinyVAECodec:
    """Load a codec by bundled name or directory.

    Args:
        name_or_path: Of the codec that codes all layers.
        recompute_layers: m. With m > 0 the codec in its subdirectory `recompute-<m>`, which leaves the first m + 1
            layers to the model. None: whatever the directory holds.

    Raises:
        CheckpointError: There is no such codec, or it is damaged.
        InputError: m is negative.
    """
    from kvcompress.codec_directory import load_tinyvae

    directory = find_checkpoint(name_or_path)
    if recompute_layers is None:
        return load_tinyvae(directory)
    if recompute_layers < 0:
        raise InputError(f"{recompute_layers} layers cannot be recomputed", "Choose 0 or more")
    part = directory / recompute_name(recompute_layers)
    if recompute_layers and part.is_dir():
        bundled_name = f"{name_or_path}/{part.name}"
        return load_tinyvae(part if directory == Path(name_or_path) else find_checkpoint(bundled_name))
    found = recompute_choices(directory)
    if recompute_layers not in found:
        what = f"no codec here that recomputes {recompute_layers} layers"
        remedy = f"It has: {', '.join(map(str, found)) or 'none'}; `kvcompress fit --recompute-layers` makes others"
        raise CheckpointError(what, remedy, path=directory)
    return load_tinyvae(directory)


def recompute_name(recompute_layers: int) -> str:
    """Return the name of the subdirectory of a codec that recomputes m layers."""
    return f"recompute-{recompute_layers}"


def recompute_choices(directory: Path) -> tuple[int, ...]:
    """Return the numbers of recomputed layers for which a directory holds a codec, ascending."""
    found = set()
    config = directory / "config.json"
    if config.is_file():
        try:
            found.add(int(json.loads(config.read_text(encoding="utf-8")).get("recompute_layers", 0)))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"config.json cannot be read ({error})", "Fit it again", path=directory) from error
    for part in directory.glob(recompute_name(0)[:-1] + "*"):
        number = part.name.rpartition("-")[2]
        if number.isdecimal() and part.name == recompute_name(int(number)) and (part / "config.json").is_file():
            found.add(int(number))
    return tuple(sorted(found))
