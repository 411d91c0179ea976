"""The raw snapshot file: an uncompressed cache in a safetensors file that any program can read and write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import FormatError, InputError, about
from kvcompress.format.atomic import PathLike, atomic_path
from kvcompress.format.json_section import MAX_ORIGIN_BYTES
from kvcompress.format.limits import require_memory
from kvcompress.format.origin import origin_of_json, require_vocabulary
from kvcompress.format.safetensors_file import opened, require_format, write_tensors
from kvcompress.format.strict_json import canonical_json, parse_json
from kvcompress.snapshot import KVSnapshot, LayerKV, Origin

FORMAT = "kvcompress.snapshot"
VERSION = "1"


def save_raw(path: PathLike, snapshot: KVSnapshot, force: bool = False, session: str = "") -> None:
    """Write a raw snapshot file; it appears whole or not at all.

    Args:
        path: The file.
        snapshot: What it holds.
        force: Replace an existing file.
        session: What the session is called, for messages; a label that decides nothing.

    Raises:
        InputError: The file exists and `force` is not given, or it cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "origin": canonical_json(snapshot.origin.to_json()).decode(),
    } | ({"session": session} if session else {})
    with atomic_path(path, force=force) as temporary:
        write_tensors(temporary, dict(_tensors(snapshot)), metadata)


def load_raw(path: PathLike) -> KVSnapshot:
    """Read a raw snapshot file.

    Tensors may come in any order and further metadata is ignored; further tensors are refused.

    Raises:
        InputError: There is no such file, or its cache is no valid snapshot.
        FormatError: It is damaged, no raw snapshot file, or of another version.
    """
    with opened(path, "a raw snapshot") as file:
        require_memory(2 * os.stat(path).st_size, "reading the snapshot")
        origin = _origin(file.metadata() or {}, path)
        tensors = _read_tensors(file, len(origin.layer_kinds), path)
    layers = tuple(
        LayerKV(tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"], tensors[f"layers.{i}.positions"])
        for i in range(len(origin.layer_kinds))
    )
    try:
        snapshot = KVSnapshot(layers, tensors["token_ids"], origin)
    except InputError as error:
        raise InputError(error.what, error.remedy, path=path) from error
    with about(path):
        require_vocabulary(snapshot.token_ids, origin.config)
    return snapshot


def origin_of_raw(path: PathLike) -> Origin:
    """Return where the cache of a raw snapshot file comes from; raises as `load_raw`."""
    with opened(path, "a raw snapshot") as file:
        return _origin(file.metadata() or {}, path)


def session_of_raw(path: PathLike) -> str:
    """Return what the session of a raw snapshot file is called, "" where it does not say; raises as `load_raw`."""
    with opened(path, "a raw snapshot") as file:
        return str((file.metadata() or {}).get("session", ""))


def raw_layers(path: PathLike, layers: Sequence[int]) -> tuple[Tensor, dict[int, LayerKV]]:
    """Return the token ids [N] of a raw snapshot file and some of its layers, without reading the others.

    Raises:
        InputError: There is no such file.
        FormatError: It is damaged.
    """
    with opened(path, "a raw snapshot") as file:
        held = {
            index: LayerKV(*(file.get_tensor(f"layers.{index}.{part}") for part in ("keys", "values", "positions")))
            for index in layers
        }
        return file.get_tensor("token_ids"), held


def _names(layers: int) -> Iterator[str]:
    """Yield the name of each tensor that a file of so many layers holds."""
    for index in range(layers):
        for part in ("keys", "values", "positions"):
            yield f"layers.{index}.{part}"
    yield "token_ids"


def _tensors(snapshot: KVSnapshot) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor; no two share memory, which safetensors refuses."""
    seen: set[int] = set()

    def owned(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        return tensor

    for index, layer in enumerate(snapshot.layers):
        yield f"layers.{index}.keys", owned(layer.keys)
        yield f"layers.{index}.values", owned(layer.values)
        yield f"layers.{index}.positions", owned(layer.positions)
    yield "token_ids", owned(snapshot.token_ids)


def _origin(metadata: dict[str, str], path: PathLike) -> Origin:
    """Check the file's metadata and return the origin in it."""
    require_format(metadata, FORMAT, VERSION, path, "raw snapshot", "`kvcompress record` or `decode`")
    if "origin" not in metadata:
        raise FormatError("the metadata key 'origin' is missing", path=path)
    if len(metadata["origin"]) > MAX_ORIGIN_BYTES:
        raise FormatError(f"the metadata key 'origin' holds more than {MAX_ORIGIN_BYTES} bytes", path=path)
    value = parse_json(metadata["origin"].encode(), "the metadata key 'origin'", path)
    if not isinstance(value, dict):
        raise FormatError("the metadata key 'origin' is not a JSON object", path=path)
    with about(path):
        return origin_of_json(value)


def _read_tensors(file: Any, layers: int, path: PathLike) -> dict[str, Tensor]:
    """Read exactly the tensors that belong there, into memory of their own."""
    found, wanted = set(file.keys()), set(_names(layers))
    for what, names in (("is missing", wanted - found), ("does not belong there", found - wanted)):
        if names:
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise FormatError(f"the tensor {min(names)!r}{others} {what}", path=path)
    tensors: dict[str, Tensor] = {}
    for name in wanted:
        if name.endswith(("positions", "token_ids")) and file.get_slice(name).get_dtype() != "I64":
            raise FormatError(f"the tensor {name!r} is not of 64-bit integers", path=path)
        # The library hands out views of the mapped file; a program that shortens it would take the cache away.
        tensors[name] = file.get_tensor(name).clone(memory_format=torch.contiguous_format)
    return tensors
