"""Bundled checkpoints: their names, directories and digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvcompress.errors import CheckpointError

DEFAULT_MODEL = "reference-lm"
DEFAULT_CODEC = "reference-lm-tinyvae"


def checkpoint_root() -> Path:
    """Return the directory of bundled checkpoints: inside the package when installed, else in the checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "checkpoints"
    return packaged if packaged.is_dir() else package.parent / "checkpoints"


def bundled() -> dict[str, str]:
    """Return the names of the checkpoints that came along and the sha256 of their weights.

    The index also knows those of the checkout that an installed package leaves out.
    """
    index = checkpoint_root() / "index.json"
    if not index.is_file():
        raise CheckpointError("no bundled checkpoints here", "Name a directory instead", path=checkpoint_root())
    names: dict[str, str] = json.loads(index.read_text())
    return {name: digest for name, digest in names.items() if (checkpoint_root() / name).is_dir()}


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
    require_intact(directory)
    return directory


def require_intact(directory: Path) -> None:
    """Raise `CheckpointError` where a directory is a bundled checkpoint and its weights are not those of the index."""
    root = checkpoint_root()
    name = directory.relative_to(root).as_posix() if directory.is_relative_to(root) else ""
    if is_bundled(name) and weights_digest(directory) != bundled()[name]:
        raise CheckpointError("the bundled weights are damaged", "Install again", path=directory)


def weights_digest(directory: Path) -> str:
    """Return the sha256 of a checkpoint's weights file."""
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError("model.safetensors is missing", "Install again", path=directory)
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def recompute_name(recompute_layers: int) -> str:
    """Return the name of the subdirectory of a codec that recomputes m layers."""
    return f"recompute-{recompute_layers}"


def recompute_choices(directory: Path) -> tuple[int, ...]:
    """Return the numbers of recomputed layers for which a directory holds a codec, ascending; raises as below."""
    return tuple(codec_parts(directory))


def codec_parts(directory: Path) -> dict[int, Path]:
    """Return where each codec of a directory lies, by how many layers it recomputes, ascending; empty for no codec.

    Raises:
        CheckpointError: A `config.json` cannot be read.
    """
    found = dict[int, Path]()
    for part in directory.glob(recompute_name(0)[:-1] + "*"):
        number = part.name.rpartition("-")[2]
        if number.isdecimal() and part.name == recompute_name(int(number)) and (part / "config.json").is_file():
            found[int(number)] = part
    config = read_config(directory)
    if "groups" in config and "shapes" in config:  # a language model has neither
        found.setdefault(int(config.get("recompute_layers", 0)), directory)
    return dict(sorted(found.items()))


def read_config(directory: Path) -> dict[str, Any]:
    """Return what `config.json` of a checkpoint says; empty where there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    place = directory / "config.json"
    if not place.is_file():
        return {}
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
        if int(config.get("recompute_layers", 0)) < 0:
            raise ValueError("layers to recompute are negative")
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"config.json cannot be read ({error})", "Fit it again", path=directory) from error
    return dict(config)
