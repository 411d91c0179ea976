"""A small GGUF file written by hand, and changes to its counts, lengths, types and the list of its tensors.

```
"GGUF" | version u32 | tensors u64 | keys u64
each key      text | type u32 | value                 a text is its length, u64, and its bytes
each tensor   text | dims u32 | u64 each | type u32 | offset u64
padding | data
```
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from eval.fuzz.mutate import bytes_changed

U32, F32, BOOL, TEXT, LIST, U64 = 4, 6, 7, 8, 9, 10
_PACK = {0: "<B", 1: "<b", 2: "<H", 3: "<h", U32: "<I", 5: "<i", F32: "<f", BOOL: "<B", U64: "<Q", 11: "<q", 12: "<d"}
_NUMBERS = (0, 1, 2, 3, 12, 31, 32, 255, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
_NAMES = (b"", b"x", b"\x1b[2J", b"\xff\xfe", b"general.alignment", b"llama.block_count", b"output_norm.weight")


@dataclass(frozen=True)
class Gguf:
    """What a file says; counts and lengths that are None are the right ones."""

    keys: list[tuple[bytes, int, Any]]
    tensors: list[tuple[bytes, list[int], int, int]]
    data: bytes
    version: int = 3
    counts: dict[str, int] = field(default_factory=dict)


def good() -> Gguf:
    """Return a model of one layer with words of its own."""
    numbers = [("block_count", 1), ("context_length", 64), ("embedding_length", 8), ("feed_forward_length", 16)]
    numbers += [("attention.head_count", 2), ("attention.head_count_kv", 1), ("vocab_size", 4)]
    keys: list[tuple[bytes, int, Any]] = [(b"general.architecture", TEXT, b"llama"), (b"general.alignment", U32, 32)]
    keys += [(f"llama.{name}".encode(), U32, value) for name, value in numbers]
    keys.append((b"llama.rope.freq_base", F32, 10000.0))
    keys.append((b"tokenizer.ggml.model", TEXT, b"gpt2"))
    keys.append((b"tokenizer.ggml.tokens", LIST, (TEXT, [b"a", b"b", b"c", b"d"])))
    keys.append((b"tokenizer.ggml.scores", LIST, (F32, [0.0, 1.0, 2.0, 3.0])))
    tensors, at = [], 0
    for name, dims in (("token_embd.weight", [8, 4]), ("output_norm.weight", [8]), ("blk.0.ffn_up.weight", [8, 16])):
        tensors.append((name.encode(), dims, 0, at))
        size = 4
        for dim in dims:
            size *= dim
        at += -(-size // 32) * 32
    return Gguf(keys, tensors, bytes(at))


def written(file: Gguf) -> bytes:
    """Return the bytes of a file."""
    counts = file.counts
    head = b"GGUF" + struct.pack(
        "<IQQ", file.version, counts.get("tensors", len(file.tensors)), counts.get("keys", len(file.keys))
    )
    parts = [head]
    for name, kind, value in file.keys:
        parts += [_text(name, counts.get("name")), struct.pack("<I", kind), _value(kind, value, counts)]
    for name, dims, kind, offset in file.tensors:
        sizes = struct.pack(f"<{len(dims)}Q", *dims)
        parts += [_text(name, None), struct.pack("<I", counts.get("dims", len(dims))), sizes]
        parts.append(struct.pack("<IQ", kind, offset))
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % 32) + file.data


def _text(text: bytes, length: int | None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _value(kind: int, value: Any, counts: dict[str, int]) -> bytes:
    if kind == TEXT:
        return _text(value, counts.get("text")) if isinstance(value, bytes) else bytes(8)
    if kind == LIST:
        inner, items = value if isinstance(value, tuple) else (U32, [])
        head = struct.pack("<IQ", inner, counts.get("items", len(items)))
        return head + b"".join(_value(inner, item, {}) for item in items)
    form = _PACK.get(kind)
    if form is None or not isinstance(value, int | float):
        return bytes(4)
    return _number(form, value)


def _number(form: str, value: float) -> bytes:
    """Return a number, cut where its type is too narrow for it."""
    if form[1] in "fd":
        found: bytes = struct.pack(form, value)
        return found
    size = struct.calcsize(form)
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")


def changed(chance: Random) -> bytes:
    """Return a file with one to three changes to what it says, or to its bytes."""
    file = good()
    if chance.random() < 0.2:
        return bytes_changed(chance, written(file))
    for _ in range(chance.choice((1, 1, 2, 3))):
        file = _changed(chance, file)
    whole = written(file)
    return bytes_changed(chance, whole) if chance.random() < 0.1 else whole


def _changed(chance: Random, file: Gguf) -> Gguf:
    kind, number = chance.randrange(8), chance.choice(_NUMBERS)
    keys, tensors = list(file.keys), list(file.tensors)
    place, spot = chance.randrange(len(keys)), chance.randrange(len(tensors))
    name, dims, packed, offset = tensors[spot]
    if kind == 0:
        counted = chance.choice(("tensors", "keys", "name", "text", "items", "dims"))
        value = number % 2**32 if counted == "dims" else number
        return replace(file, counts={**file.counts, counted: value})
    if kind == 1:
        old, form, value = keys[place]
        keys[place] = chance.choice(
            (
                (chance.choice((*_NAMES, old)), form, value),
                (old, chance.choice((*range(14), 2**31)), value),
                (old, form, number if form in _PACK else value),
                (old, LIST, (chance.choice((*_PACK, TEXT, LIST)), [])),
                (old, LIST, (TEXT, [b"x"] * 50)),
            )
        )
    elif kind == 2:
        keys[place] = (keys[place][0], U64, number)
    elif kind == 3:
        tensors[spot] = (name, [chance.choice((*dims, number)) for _ in range(chance.randrange(6))], packed, offset)
    elif kind == 4:
        tensors[spot] = (name, dims, chance.choice((*range(42), 2**31)), offset)
    elif kind == 5:
        tensors[spot] = (chance.choice((*_NAMES, tensors[0][0])), dims, packed, number)
    elif kind == 6:
        return replace(file, version=number % 2**32, data=file.data[: chance.randrange(len(file.data) + 1)])
    else:
        chance.choice((keys, tensors)).pop(0)
        if not keys or not tensors:
            return file
    return replace(file, keys=keys, tensors=tensors)
