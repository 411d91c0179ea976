"""Write the files of a report into a directory, each atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kvcompress.errors import InputError
from kvcompress.format.atomic import atomic_write
from kvcompress.format.atomic_directory import require_directory


def write_files(directory: str | os.PathLike[str], texts: Mapping[str, str], *, force: bool = True) -> list[Path]:
    """Write texts into a directory, which is made if there is none; each file appears whole or not at all.

    All texts are rendered before the call, so a report that cannot be rendered leaves no half of it behind.

    Args:
        directory: Where to write.
        texts: Text of each file by its name.
        force: Whether earlier files may be replaced.

    Returns:
        Their paths.

    Raises:
        InputError: The directory or a file cannot be written, or a file exists without `force`.
    """
    if not Path(directory).is_dir():
        require_directory(directory)
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        what = f"the directory cannot be made: {getattr(error, 'strerror', None) or error}".lower()
        raise InputError(what, "Choose another place", path=directory) from error
    paths = []
    for name, text in texts.items():
        path = Path(directory) / name
        # A token may decode to half a character, which UTF-8 cannot hold; it is spelled out.
        atomic_write(path, [text.encode("utf-8", "backslashreplace")], force=force)
        paths.append(path)
    return paths
