"""The header of a GGUF file, looked at before a reader that believes it is let at it.

What it counts must have room in the file: keys, items of lists, letters of names, dimensions, and the data of each
tensor. What it says of the model must be possible, and no width may be larger than any that a tensor has, for a model
is built by what it says. Nothing is allocated by a number that was not compared with the file's size.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvcompress.errors import CheckpointError, FormatError
from kvcompress.format.json_section import MAX_LAYERS
from kvcompress.format.origin import require_possible_config

REMEDY = "Download it again if it is damaged"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_NAME_BYTES = 1 << 16
MOST_DEPTH = 4
ALIGNMENT, ARCHITECTURE, LAYERS = "general.alignment", "general.architecture", "block_count"

_TEXT, _LIST = 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)},
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18)},
}
"""Types of tensors: numbers in a block and bytes that it takes."""

_LEAST_KEY_BYTES, _LEAST_TENSOR_BYTES = 13, 24


def require_sound(path: Path) -> None:
    """Refuse a GGUF file whose header lies about its size or its model.

    Raises:
        CheckpointError: It does.
    """
    if path.stat().st_size == 0:  # which cannot be mapped
        raise CheckpointError("the GGUF file is empty", REMEDY, path=path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            _Header(content).read()
        except FormatError as error:
            raise CheckpointError(f"the GGUF file cannot be used ({error.what})", REMEDY, path=path) from error


class _Header:
    """A reader that knows where the file ends."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at, self.size = content, 0, len(content)

    def read(self) -> None:
        """Look at all of it."""
        self._take(4)
        version, tensors, keys = self._number("I"), self._number("Q"), self._number("Q")
        if version not in VERSIONS:
            raise FormatError(f"version {version} of the format is not supported")
        self._require_room("keys", keys, _LEAST_KEY_BYTES)
        said: dict[str, Any] = {}
        for _ in range(keys):
            name = self._text("a key", MOST_NAME_BYTES)
            if name in said:
                raise FormatError(f"the key {name[:80]!r} comes twice")
            said[name] = self._value(self._number("I"), 0)
        self._require_room("tensors", tensors, _LEAST_TENSOR_BYTES)
        held: dict[str, tuple[list[int], int, int]] = {}
        for _ in range(tensors):
            name = self._text("a tensor's name", MOST_NAME_BYTES)
            if name in held:
                raise FormatError(f"the tensor {name[:80]!r} comes twice")
            held[name] = self._tensor(name)
        self._require_data(said.get(ALIGNMENT, 32), held)
        _require_model(said, [dims for dims, _, _ in held.values()])

    def _require_data(self, alignment: Any, held: dict[str, tuple[list[int], int, int]]) -> None:
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(f"an alignment of {str(alignment)[:40]} is impossible")
        start = -(-self.at // alignment) * alignment
        for name, (_, size, offset) in held.items():
            if offset % alignment or start + offset + size > self.size:
                raise FormatError(f"the tensor {name[:80]!r} ends behind the file or begins where none may")

    def _tensor(self, name: str) -> tuple[list[int], int, int]:
        """Return dimensions, bytes and offset of a tensor."""
        count = self._number("I")
        if not 0 < count <= MOST_DIMENSIONS:
            raise FormatError(f"the tensor {name[:80]!r} has {count} dimensions")
        dims = [self._number("Q") for _ in range(count)]
        kind, offset, numbers = self._number("I"), self._number("Q"), 1
        for dim in dims:
            numbers *= dim
        block = _BLOCKS.get(kind)
        if block is None:
            raise FormatError(f"the tensor {name[:80]!r} is of the unknown type {kind}")
        if not numbers or dims[0] % block[0]:
            raise FormatError(f"the tensor {name[:80]!r} has impossible dimensions")
        return dims, numbers // block[0] * block[1], offset

    def _value(self, kind: int, depth: int) -> Any:
        """Return a number, a text, or of a list how many items it has; they are looked at too."""
        if kind == _TEXT:
            return self._text("a text", self.size)
        if kind != _LIST:
            return self._scalar(kind)
        inner, count = self._number("I"), self._number("Q")
        if inner in _SCALARS:
            self._require_room("items", count, struct.calcsize(_SCALARS[inner]))
            self._take(count * struct.calcsize(_SCALARS[inner]))
            return [count]
        if inner not in (_TEXT, _LIST) or depth >= MOST_DEPTH:
            raise FormatError(f"a list of the unknown type {inner}")
        self._require_room("items", count, 8)
        item: Callable[[], Any] = self._skip_text if inner == _TEXT else lambda: self._value(_LIST, depth + 1)
        for _ in range(count):
            item()
        return [count]

    def _scalar(self, kind: int) -> int | float:
        form = _SCALARS.get(kind)
        if form is None:
            raise FormatError(f"a value of the unknown type {kind}")
        found: int | float = struct.unpack(f"<{form}", self._take(struct.calcsize(form)))[0]
        return found

    def _number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self._take(struct.calcsize(form)))[0])

    def _text(self, what: str, most: int) -> str:
        size = self._number("Q")
        if size > most:
            raise FormatError(f"{what} has {size} bytes, more than {most}")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{what} is not UTF-8") from error

    def _skip_text(self) -> None:
        self._take(self._number("Q"))

    def _require_room(self, what: str, count: int, each: int) -> None:
        if count * each > self.size - self.at:
            raise FormatError(f"it states {count} {what}, for which it has no room")

    def _take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise FormatError("it is cut off")
        self.at += count
        return self.content[self.at - count : self.at]


def _require_model(said: dict[str, Any], shapes: list[list[int]]) -> None:
    """Refuse what a model cannot be, before it is built."""
    kind = said.get(ARCHITECTURE)
    if not isinstance(kind, str):
        raise FormatError("it does not say what model it holds")
    config = {
        name.removeprefix(f"{kind}."): value
        for name, value in said.items()
        if name.startswith(f"{kind}.") and isinstance(value, int | float)
    }
    require_possible_config(config)
    layers, widest = config.get(LAYERS, 0), max((max(dims) for dims in shapes), default=0)
    if not 0 <= layers <= min(MAX_LAYERS, len(shapes)):
        raise FormatError(f"it says {LAYERS} = {layers} and holds {len(shapes)} tensors")
    for name, value in config.items():
        measured = name == "vocab_size" or (name.endswith("_length") and not name.endswith("context_length"))
        if measured and not 0 <= value <= widest:
            raise FormatError(f"it says {name} = {value}, and no tensor is wider than {widest}")
