"""Changes to files: blind ones to bytes, and ones that know what a file is made of."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from kvcompress.format.container import MAGIC

Extreme = int | float | str | bool | list[Any] | dict[str, Any] | None

EXTREMES: tuple[Extreme, ...] = (
    *(0, 1, -1, 2, 255, 256, 65535, 65536, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64),
    *(10**12, -(10**18), 10**400, 1.5, -0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), True, False, None),
    *("", "x", "x" * 300, "\x1b[2J", "\u202e", "é", "\ud83d", "../../etc/passwd", "a\0b", "1e9", "NaN"),
    *([], {}, [[]], [0] * 50, {"a": {"b": {}}}, [1, "a", None]),
)
_WORDS = (
    0,
    1,
    2,
    3,
    4,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**62,
    2**64 - 1,
)
_DEEP = 3000


def bytes_changed(chance: Random, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """Return bytes after one to three blind changes: bits, lengths, cuts, repeats, pieces of other files."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(found) + 1)
        end = min(len(found), at + chance.choice((1, 2, 4, 8, chance.randrange(1, 64))))
        kind = chance.randrange(8)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at:end] = chance.randbytes(end - at)
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            del found[at:end]
        elif kind == 4:
            found[at:at] = found[at:end]
        elif kind == 5:
            found[at:at] = chance.randbytes(chance.randrange(1, 16))
        elif kind == 6:
            size = chance.choice((1, 2, 4, 8))
            found[at : at + size] = (chance.choice(_WORDS) % 256**size).to_bytes(size, "little")
        elif others:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            found[at:end] = other[start : start + chance.randrange(1, 64)]
    return bytes(found)


def value_changed(chance: Random, value: Any) -> Any:
    """Return a JSON value of which one to three parts, anywhere in it, are something else, gone or doubled."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return chance.choice(EXTREMES)
        holder, key = chance.choice(places)
        kind = chance.randrange(10)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2 and isinstance(holder, dict):
            holder[chance.choice(("", "num_hidden_layers", "\x1b", "recompute_layers", "x" * 300))] = holder.pop(key)
        elif kind == 3 and type(holder[key]) in (int, float):
            holder[key] = holder[key] + chance.choice((-1, 1)) if abs(holder[key]) < 1e300 else 0
        elif kind == 4:
            other, name = chance.choice(places)
            holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else (other or [0])[0])
        else:
            holder[key] = copy.deepcopy(chance.choice(EXTREMES))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every part of a JSON value, as its holder and its key or index."""
    found: list[tuple[Any, Any]] = []
    rest = [value]
    while rest:
        holder = rest.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))[:64]
        found += [(holder, key) for key, _ in items]
        rest += [part for _, part in items if isinstance(part, dict | list)]
    return found


def json_text(chance: Random, value: Any) -> bytes:
    """Return JSON of a changed value, now and then changed as text as well."""
    text = json.dumps(value_changed(chance, value), separators=(",", ":")).encode()
    kind = chance.randrange(12)
    if kind == 0:
        return bytes_changed(chance, text)
    if kind == 1:
        at = text.find(b":") + 1
        return text[:at] + b"[" * _DEEP + b"]" * _DEEP + b"," + text[at:]
    return text


def sealed(header: bytes, sections: Mapping[str, bytes]) -> bytes:
    """Return a file of version 1 around any header, its checksum right."""
    head = struct.pack("<8sII", MAGIC, 1, len(header)) + header
    return b"".join([head, hashlib.sha256(head).digest(), *sections.values()])


def header_of(fields: Mapping[str, Any], sections: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the fields of a header whose list of sections is right."""
    listed = [[name, len(data), hashlib.sha256(data).hexdigest()[:32]] for name, data in sections.items()]
    return {**fields, "sections": listed}


def file_changed(
    chance: Random,
    fields: Mapping[str, Any],
    sections: Mapping[str, bytes],
    packers: Mapping[str, Callable[..., bytes]],
) -> bytes:
    """Return a `.kvz` file with a change behind right checksums: in a section, among the sections, or in the header.

    Args:
        chance: Decides.
        fields: Of the good file's header.
        sections: Of the good file.
        packers: Name of a section -> what changes it knowingly: called with `chance` and the section.
    """
    found, stated, kind = dict(sections), dict(fields), chance.randrange(10)
    if kind < 6:
        name = chance.choice(sorted(found))
        knowing = packers.get(name.partition(".")[0])
        blind = knowing is None or chance.random() < 0.4
        found[name] = (
            bytes_changed(chance, found[name], tuple(sections.values()))
            if blind or knowing is None
            else knowing(chance, found[name])
        )
    elif kind == 6:
        one, other = chance.choice(sorted(found)), chance.choice(sorted(found))
        found[one], found[other] = found[other], found[one]
    elif kind == 7:
        found.pop(chance.choice(sorted(found)))
    elif kind == 8:
        new = chance.choice(
            ("offsets", "outliers", "exact", "known", "positions", "residual.0", "latents.1", "\x1b", "")
        )
        found[new] = chance.choice((b"", bytes(4), chance.choice(sorted(found.values())), chance.randbytes(30)))
    if kind == 9 or chance.random() < 0.2:
        return sealed(json_text(chance, header_of(stated, found)), found)
    if chance.random() < 0.2:
        stated = {
            **stated,
            chance.choice(("tokens", "raw_bytes")): chance.choice((0, 1, 15, 17, 2**24, 2**40, 2**53 - 1)),
        }
    return sealed(json.dumps(header_of(stated, found)).encode(), found)


def zlib_json_changed(chance: Random, section: bytes, preset: bytes = b"") -> bytes:
    """Return a section of JSON under zlib whose JSON was changed."""
    inflate = zlib.decompressobj(zdict=preset) if preset else zlib.decompressobj()
    text = json_text(chance, json.loads(inflate.decompress(section)))
    deflate = zlib.compressobj(1, zdict=preset) if preset and chance.random() < 0.8 else zlib.compressobj(1)
    return deflate.compress(text) + deflate.flush()


def safetensors_changed(data: bytes, chance: Random) -> bytes:
    """Return a safetensors file whose bytes, header or metadata were changed."""
    if chance.random() < 0.3:
        return bytes_changed(chance, data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if chance.random() < 0.5 and "origin" in header.get("__metadata__", {}):
        origin = json.loads(header["__metadata__"]["origin"])
        header["__metadata__"]["origin"] = json_text(chance, origin).decode(errors="replace")
        text = json.dumps(header).encode()
    else:
        text = json_text(chance, header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
