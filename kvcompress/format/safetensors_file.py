"""Safetensors files of this package, identified by `format` and `version` in their metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvcompress.errors import FormatError, shown
from kvcompress.format.atomic import PathLike, open_regular
from kvcompress.format.container import MAGIC


@contextmanager
def opened(path: PathLike, what: str) -> Iterator[Any]:
    """Open a safetensors file and give its handle; errors of the library become ours.

    Args:
        path: The file.
        what: What it should be, e.g. "raw snapshot".

    Raises:
        InputError: There is no such file.
        FormatError: It is empty, a .kvz file, cut off, or no safetensors file.
    """
    with open_regular(path) as (file, size):
        start = file.read(len(MAGIC))
    if size == 0:
        raise FormatError("the file is empty", path=path, offset=0)
    if start == MAGIC:
        raise FormatError(f"this is a .kvz file, not {what}", "Decode it first", path=path, offset=0)
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        remedy = "Copy or record the session again"
        raise FormatError(f"not a safetensors file, or cut off: {one_line(error)}", remedy, path=path) from error


def require_format(metadata: Mapping[str, str], name: str, version: str, path: PathLike, what: str, maker: str) -> None:
    """Refuse metadata of another format or version.

    Args:
        metadata: Of the file.
        name: The format's name.
        version: The one version that is read.
        path: The file.
        what: What the file should be, e.g. "raw snapshot".
        maker: What writes such files.

    Raises:
        FormatError: The metadata says something else.
    """
    if metadata.get("format") != name:
        raise FormatError(
            f"no {what}: its metadata does not say format = {name!r}", f"Name a file written by {maker}", path=path
        )
    if metadata.get("version") != version:
        told = f"version {metadata.get('version')!r} of the {what} format is not supported"
        raise FormatError(told, "Upgrade kvcompress", path=path)


def write_tensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in place, for use inside `atomic_path`.

    Raises:
        OSError: It cannot be written; the library's own error holds the system's number in words.
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(one_line(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def tensors_in(paths: Iterable[PathLike]) -> int:
    """Return how many tensors safetensors files hold, going by their headers; files that cannot be read count none."""
    held = 0
    for path in paths:
        with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as handle:
            held += len(handle.keys())
    return held


def one_line(error: BaseException) -> str:
    """Return an error's text in one line, not longer than a line may be."""
    return shown(" ".join(str(error).split()))
