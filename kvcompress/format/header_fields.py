"""The header of a `.kvz` file: its fields, each validated before use."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvcompress.errors import FormatError
from kvcompress.format.atomic import PathLike
from kvcompress.format.header import unpack_header
from kvcompress.format.json_section import MAX_NUMBER
from kvcompress.format.strict_json import parse_json

VERSION = 2
HASH_CHARACTERS = 32
CHECKSUM_CHARACTERS = {1: 32, 2: 16}
"""Hexadecimal digits of a section's checksum, by version of the format."""
MAX_HEADER_BYTES = 1 << 20
MAX_NAME_CHARACTERS = 255

PREFIX = struct.Struct("<8sII")
"""Magic, version, length of the header."""

_FIELDS = ("codec", "codec_fingerprint", "model", "model_name", "raw_bytes", "sections", "settings", "tokens")


@dataclass(frozen=True, slots=True)
class Header:
    """What a `.kvz` file says about itself before its sections; the other fields are those of `Encoded`.

    Attributes:
        sections: Name, bytes and the first digits of the SHA-256 (hexadecimal) of each section, in file order.
        header_bytes: Everything before the first section.
    """

    codec: str
    codec_fingerprint: str
    model: Mapping[str, str | None]
    model_name: str
    tokens: int
    raw_bytes: int
    settings: Mapping[str, Any]
    sections: tuple[tuple[str, int, str], ...]
    header_bytes: int

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.header_bytes + sum(size_bytes for _, size_bytes, _ in self.sections)


def parse_header(body: bytes, version: int, path: PathLike | None) -> Header:
    """Check each field of the header."""
    text = body if version == 1 else unpack_header(body, MAX_HEADER_BYTES, path, PREFIX.size)
    value = parse_json(text, "the header", path, PREFIX.size)
    if not isinstance(value, dict) or tuple(sorted(value)) != _FIELDS:
        found = f"fields {', '.join(sorted(map(repr, value)))}" if isinstance(value, dict) else "no JSON object"
        raise _bad(f"the header must have exactly the fields {', '.join(_FIELDS)}; found {found[:200]}", path)
    model = value["model"]
    if not isinstance(model, dict):
        raise _bad("the header field 'model' is not an object", path)
    for part, digest in model.items():
        _label(part, "model", path)
        if digest is not None and len(_label(digest, "model", path)) > HASH_CHARACTERS:
            raise _bad(f"a hash in the header field 'model' is longer than {HASH_CHARACTERS} characters", path)
    if not isinstance(value["settings"], dict):
        raise _bad("the header field 'settings' is not an object", path)
    return Header(
        codec=_label(value["codec"], "codec", path, least=1),
        codec_fingerprint=_label(value["codec_fingerprint"], "codec_fingerprint", path),
        model=model,
        model_name=_label(value["model_name"], "model_name", path),
        tokens=_number(value["tokens"], "tokens", path),
        raw_bytes=_number(value["raw_bytes"], "raw_bytes", path),
        settings=value["settings"],
        sections=tuple(_sections(value["sections"], CHECKSUM_CHARACTERS[version], path)),
        header_bytes=PREFIX.size + len(body) + 32,
    )


def _sections(entries: Any, digits: int, path: PathLike | None) -> Iterator[tuple[str, int, str]]:
    """Check the header's list of sections."""
    if not isinstance(entries, list):
        raise _bad("the header field 'sections' is not a list", path)
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3:
            raise _bad("an entry of the header field 'sections' is not [name, bytes, checksum]", path)
        name, size_bytes = _label(entry[0], "sections", path, least=1), _number(entry[1], "sections", path)
        checksum = _label(entry[2], "sections", path)
        if len(checksum) != digits or set(checksum) - set("0123456789abcdef"):
            raise _bad(f"the checksum of the section {name!r} is not {digits} hexadecimal digits", path)
        if name in seen:
            raise _bad(f"the section {name!r} is listed twice", path)
        seen.add(name)
        yield name, size_bytes, checksum


def _label(value: Any, name: str, path: PathLike | None, least: int = 0) -> str:
    """Check a short text. Unprintable characters are refused: these texts end up on a terminal."""
    if not isinstance(value, str) or not least <= len(value) <= MAX_NAME_CHARACTERS or not value.isprintable():
        wanted = f"a printable text of {least} to {MAX_NAME_CHARACTERS} characters"
        raise _bad(f"the header field {name!r} must hold {wanted}", path)
    return value


def _number(value: Any, name: str, path: PathLike | None) -> int:
    """Check an integer; a boolean is none."""
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise _bad(f"the header field {name!r} must hold an integer from 0 to {MAX_NUMBER}", path)
    return value


def _bad(what: str, path: PathLike | None) -> FormatError:
    return FormatError(what, path=path, offset=PREFIX.size)
