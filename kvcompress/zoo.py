"""Bundled checkpoints by name: where they lie and what their weights must hash to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvcompress.errors import CheckpointError

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


def load_codec(name_or_path: str | Path = DEFAULT_CODEC) -> TinyVAECodec:
    """Load a codec by bundled name or directory."""
    from kvcompress.codec import load_tinyvae

    return load_tinyvae(find_checkpoint(name_or_path))
