"""Origin and positions as bytes: strict, canonical JSON under zlib, with a size limit.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.atomic import PathLike

MAX_NUMBER = 2**53 - 1  # the largest integer that every JSON library reads exactly
MAX_ORIGIN_BYTES = 4 << 20
MAX_POSITIONS_BYTES = 64 << 20
MAX_LAYERS = 4096
MAX_TOKENS = 1 << 24
FEW_RUNS = 16  # fewer are always written as runs: a bitmap would hardly be shorter
MAX_POSITIONS = 1 << 25  # in all distinct lists together


def canonical_json(value: Any) -> bytes:
    """Return compact UTF-8 JSON with sorted keys.

    Raises:
        InputError: The value holds NaN, infinity, or something that JSON cannot express.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"cannot be stored as JSON ({error})") from error


def parse_json(data: bytes, what: str, path: PathLike | None = None, offset: int | None = None) -> Any:
    """Read strict JSON: UTF-8, no key twice, no NaN or infinity, no lone surrogates."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique)
        canonical_json(value)  # finds NaN, numbers that overflow to infinity, and lone surrogates
    except (ValueError, RecursionError, InputError) as error:
        reason = error.what if isinstance(error, InputError) else str(error)
        raise FormatError(f"{what} is not valid JSON: {reason}", path=path, offset=offset) from error
    return value


def pack_origin(origin_json: Mapping[str, Any], preset: bytes = b"") -> bytes:
    """Return the "origin" section: canonical JSON under zlib.

    Args:
        origin_json: `Origin.to_json()`.
        preset: Dictionary of the zlib stream, which the reader must have too: what equals it costs next to nothing.
    """
    return _pack_json(dict(origin_json), MAX_ORIGIN_BYTES, "origin", preset)


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
    value = _unpack_json(data, MAX_ORIGIN_BYTES, "origin", preset)
    if not isinstance(value, dict):
        raise FormatError("the section 'origin' is not a JSON object")
    return value


def pack_positions(positions: Sequence[Sequence[int]]) -> bytes:
    """Return the "positions" section: each distinct list once, and for each layer which it is.

    A list is written as runs [start, count] or as a bitmap, whichever is shorter: of a session of 1,024 tokens with
    half of them dropped one by one runs took 433 bytes.

    Args:
        positions: For each layer the strictly increasing positions that it holds.
    """
    lists: dict[tuple[int, ...], int] = {}
    layers = [lists.setdefault(tuple(layer), len(lists)) for layer in positions]
    runs = [_runs(one) for one in lists]
    _positions_from({"layers": layers, "lists": runs}, MAX_TOKENS, InputError)
    forms = [_shorter(form, one) for form, one in zip(runs, lists, strict=True)]
    value = {"layers": layers, "lists": forms}
    return _pack_json(value, MAX_POSITIONS_BYTES, "positions")


def unpack_positions(data: bytes, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Return for each layer its positions; layers with the same positions share one list.

    Args:
        data: A "positions" section.
        max_tokens: The most positions a layer may hold; nothing larger is built, whatever the section claims.

    Raises:
        FormatError: The section is damaged, too large, or its lists are not strictly increasing.
    """
    value = _unpack_json(data, MAX_POSITIONS_BYTES, "positions")
    return _positions_from(value, max_tokens, FormatError)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal keys another reader might take the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _dictionary_id(data: bytes) -> str | None:
    """Return the Adler-32 of the preset dictionary that a zlib stream asks for (RFC 1950), None where it asks none."""
    asks = len(data) >= 6 and data[1] & 0x20
    return data[2:6].hex() if asks else None


def _pack_json(value: Any, most: int, name: str, preset: bytes = b"") -> bytes:
    data = canonical_json(value)
    if len(data) > most:
        raise InputError(f"the section {name!r} would have {len(data)} bytes, more than {most}")
    deflate = zlib.compressobj(9, zdict=preset) if preset else zlib.compressobj(9)
    return deflate.compress(data) + deflate.flush()


def _unpack_json(data: bytes, most: int, name: str, preset: bytes = b"") -> Any:
    """Decompress at most `most` bytes, all of `data`, and read them as JSON."""
    inflate = zlib.decompressobj(zdict=preset) if preset else zlib.decompressobj()
    try:
        text = inflate.decompress(data, most + 1)
    except zlib.error as error:
        raise FormatError(f"the section {name!r} cannot be decompressed ({error})") from error
    if len(text) > most:
        raise FormatError(f"the section {name!r} holds more than {most} bytes")
    if not inflate.eof or inflate.unused_data:
        raise FormatError(f"the section {name!r} does not end with its data")
    return parse_json(text, f"the section {name!r}")


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """Return the runs [start, count] of consecutive numbers."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([position, 1])
    return runs


def _bitmap(positions: Sequence[int]) -> str:
    """Return positions as hexadecimal digits of four bits, the highest first; the last digit is not 0."""
    digits = [0] * (positions[-1] // 4 + 1 if positions else 0)
    for position in positions:
        digits[position // 4] |= 8 >> position % 4
    return "".join(f"{digit:x}" for digit in digits)


def _shorter(runs: list[list[int]], positions: Sequence[int]) -> list[list[int]] | str:
    """Return the form of a list that takes fewer bytes; of equal ones the runs."""
    if len(runs) < FEW_RUNS or positions[-1] >= MAX_TOKENS:
        return runs
    forms: tuple[list[list[int]] | str, ...] = (runs, _bitmap(positions))
    return min(forms, key=lambda form: len(zlib.compress(canonical_json({"list": form}), 9)))


def _runs_of(form: Any, max_tokens: int, require: Callable[[bool, str], None]) -> Any:
    """Return a list in the form of runs, which are not checked yet; a bitmap is only read if so many tokens need it."""
    if not isinstance(form, str):
        return form
    require(0 < len(form) < max_tokens / 4 + 1, f"has a bitmap that is not of {max_tokens} tokens at most")
    require(not set(form) - set("0123456789abcdef") and form[-1] != "0", "has a damaged bitmap")
    bits = bin(int("1" + form, 16))[3:]
    return _runs([at for at, bit in enumerate(bits) if bit == "1"])


def _positions_from(value: Any, max_tokens: int, failure: type[InputError] | type[FormatError]) -> list[list[int]]:
    """Build the lists of a "positions" section after checking every number in it."""

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise failure(f"the section 'positions' {what}")

    require(isinstance(value, dict) and sorted(value) == ["layers", "lists"], "must have the fields layers, lists")
    layers, lists = value["layers"], value["lists"]
    require(isinstance(layers, list) and isinstance(lists, list), "must hold two lists")
    require(len(layers) <= MAX_LAYERS, f"has more than {MAX_LAYERS} layers")
    # Numbered in the order of first use: no list unused, none missing, and one way only to write the same content.
    require(all(type(index) is int for index in layers), "has a layer that is not an integer")
    require(list(dict.fromkeys(layers)) == list(range(len(lists))), "does not number its lists in order of use")
    lists = [_runs_of(form, max_tokens, require) for form in lists]
    total = 0
    for runs in lists:
        end, count = -1, 0
        require(isinstance(runs, list), "has a list that is none")
        for run in runs:
            require(isinstance(run, list) and len(run) == 2, "has a run that is not [start, count]")
            require(all(type(number) is int for number in run), "has a run that is not of integers")
            require(run[0] > end and run[1] > 0, "has positions that do not increase")
            end, count, total = run[0] + run[1] - 1, count + run[1], total + run[1]
            require(end < MAX_NUMBER, "has a position that is too large")
            require(count <= max_tokens, f"has more positions than the {max_tokens} tokens allowed")
            require(total <= MAX_POSITIONS, f"has more than {MAX_POSITIONS} positions")
    built = [[position for start, count in runs for position in range(start, start + count)] for runs in lists]
    return [built[index] for index in layers]
