"""JSON under zlib with a size limit, and the section "origin".

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.inflate import inflated
from kvcompress.format.limits import require_memory
from kvcompress.format.strict_json import MOST_VALUES, canonical_json, parse_json

MAX_NUMBER = 2**53 - 1  # the largest integer that every JSON library reads exactly
MAX_ORIGIN_BYTES = 4 << 20
MAX_LAYERS = 4096
MAX_TOKENS = 1 << 24

VALUE_BYTES = 64
"""Memory of a JSON value in Python: lists of two small integers take three values and 150 bytes."""


def pack_origin(origin_json: Mapping[str, Any], preset: bytes = b"") -> bytes:
    """Return the "origin" section: canonical JSON under zlib.

    Args:
        origin_json: `Origin.to_json()`.
        preset: Dictionary of the zlib stream, which the reader must have too: what equals it costs next to nothing.
    """
    return pack_json(dict(origin_json), MAX_ORIGIN_BYTES, "origin", preset)


def unpack_origin(data: bytes, preset: bytes = b"") -> dict[str, Any]:
    """Return the dictionary in an "origin" section; decompresses at most 4 MiB.

    Args:
        data: The section.
        preset: As in `pack_origin`; a stream without a dictionary does not use it.

    Raises:
        MismatchError: The section was written with another preset.
        FormatError: The section is damaged, too large or not a JSON object.
    """
    wanted, found = _dictionary_id(data), f"{zlib.adler32(preset):08x}" if preset else "none"
    if wanted not in (None, found):
        remedy = "Name the codec that made the file with --codec DIR"
        raise MismatchError("the codec's origin, Adler-32", str(wanted), found, remedy)
    value = unpack_json(data, MAX_ORIGIN_BYTES, "origin", preset)
    if not isinstance(value, dict):
        raise FormatError("the section 'origin' is not a JSON object")
    return value


def _dictionary_id(data: bytes) -> str | None:
    """Return the Adler-32 of the preset dictionary that a zlib stream asks for (RFC 1950), None where it asks none."""
    asks = len(data) >= 6 and data[1] & 0x20
    return data[2:6].hex() if asks else None


def pack_json(value: Any, most: int, name: str, preset: bytes = b"") -> bytes:
    """Return a value as canonical JSON under zlib; raises `InputError` where that would have more than `most` bytes."""
    data = canonical_json(value)
    if len(data) > most:
        raise InputError(f"the section {name!r} would have {len(data)} bytes, more than {most}")
    deflate = zlib.compressobj(9, zdict=preset) if preset else zlib.compressobj(9)
    return deflate.compress(data) + deflate.flush()


def unpack_json(
    data: bytes, most: int, name: str, preset: bytes = b"", *, most_values: int = MOST_VALUES, sound: bool = True
) -> Any:
    """Decompress at most `most` bytes, all of `data`, and read them as JSON.

    Args:
        data: A section, all of it.
        most: Bytes of JSON; no more are decompressed.
        name: Of the section.
        preset: Dictionary of the zlib stream.
        most_values: See `parse_json`,
        sound: likewise.

    Raises:
        FormatError: It is damaged, too large, or no such JSON.
        MemoryLimitError: What it holds would take more memory than is allowed.
    """
    what = f"the section {name!r}"
    text = inflated(data, most, what, zlib.decompressobj(zdict=preset) if preset else zlib.decompressobj())
    values = sum(map(text.count, (b",", b"[", b"{")))
    require_memory(VALUE_BYTES * min(values, most_values) + 4 * len(text), f"reading {what}")
    return parse_json(text, what, most_values=most_values, sound=sound)
