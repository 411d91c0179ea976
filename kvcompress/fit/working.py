"""Intermediate results of a fit on disk, so that an interrupted fit continues with the next pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.format.atomic import atomic_path, atomic_write
from kvcompress.format.safetensors_file import write_tensors
from kvcompress.format.working_folder import PREFIX, remove

KEY = "working.json"


class Working:
    """A directory of tensors by name.

    Args:
        directory: Where they lie; None keeps nothing.
        key: What they depend on. What another key left there is removed.
    """

    def __init__(self, directory: Path | None, key: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        if directory is None:
            return
        stamp = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        place = directory / KEY
        if directory.is_dir() and not place.is_file() and any(_own(directory)):
            raise InputError("is no working directory of a fit", "Remove it or choose another output", path=directory)
        if place.is_file() and place.read_text() != stamp:
            self.remove()
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(place, [stamp.encode()], force=True)

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a name, made and kept where they are not there yet."""
        if self.directory is None:
            return make()
        place = self.directory / f"{name}.safetensors"
        if place.is_file():
            return load_file(place)
        found = {key: tensor.contiguous() for key, tensor in make().items()}
        with atomic_path(place, force=True) as temporary:
            write_tensors(temporary, found)
        return found

    def file(self, name: str) -> Path | None:
        """Return the path of a file of another kind in the directory; None where nothing is kept."""
        return None if self.directory is None else self.directory / name

    def remove(self) -> None:
        """Remove the directory; killed meanwhile, what is left of it still says whose it is."""
        if self.directory is None or not self.directory.is_dir():
            return
        for entry in _own(self.directory):
            if entry.name != KEY:
                remove(entry)
        remove(self.directory)


def _own(directory: Path) -> list[Path]:
    """Return what lies in a directory, but for what a killed writer left."""
    return [entry for entry in directory.iterdir() if not entry.name.startswith(PREFIX)]
