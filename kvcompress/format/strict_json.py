"""Strict, bounded JSON from untrusted files.

Refused are what two readers could take for different things (a key twice, NaN, numbers beyond float64, halves of
surrogate pairs) and what costs far more than its bytes (values by the million, nesting beyond any use). Whoever gets a
value from here can print it, store it again and calculate with its numbers.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from kvcompress.errors import FormatError, InputError
from kvcompress.format.atomic import PathLike, open_regular

MOST_VALUES = 1 << 18
"""In one text: a value costs up to a hundred times the byte that it may be written in."""

MOST_DEPTH = 64
"""Objects and lists inside each other. Python's own limit depends on who calls."""

MOST_FILE_BYTES = 16 << 20
"""Of a JSON file that this package writes."""

MOST_LINE_BYTES = 64 << 20
"""Of a line of a JSON lines file: a session of 16 million tokens."""

_LARGEST = sys.float_info.max


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


def parse_json(
    data: bytes,
    what: str,
    path: PathLike | None = None,
    offset: int | None = None,
    *,
    most_values: int = MOST_VALUES,
    sound: bool = True,
) -> Any:
    """Read strict JSON.

    Args:
        data: UTF-8 text, of a length that somebody has looked at.
        what: Names it in errors.
        path: Named in errors.
        offset: Byte of the file at which it begins, for errors.
        most_values: More are refused before any is built.
        sound: Whether each value is looked at; not needed where the caller looks at each and keeps integers only.

    Raises:
        FormatError: It is not JSON, holds a key twice, a number that float64 does not, half of a surrogate pair, more
            than `most_values` values, or is nested more than 64 deep.
    """
    try:
        if sum(map(data.count, (b",", b"[", b"{"))) > most_values:
            raise ValueError(f"more than {most_values} values")
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if sound:
            _require_sound(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}", path=path, offset=offset) from error
    return value


def read_json(path: PathLike, what: str, most_bytes: int = MOST_FILE_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What it should be, for errors.
        most_bytes: A larger one is refused unread.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: It is too large, or as for `parse_json`.
    """
    with open_regular(path) as (file, size):
        if size > most_bytes:
            raise FormatError(f"{what} of {size} bytes is larger than {most_bytes}", path=path)
        return parse_json(file.read(most_bytes + 1), what, path)


def read_json_lines(path: PathLike, what: str, most_bytes: int = MOST_LINE_BYTES) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line of a JSON lines file that is not blank.

    Args:
        path: The file.
        what: What a line is, for errors, such as "a session".
        most_bytes: A longer line is refused.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: A line is too long, or as for `parse_json`.
    """
    with open_regular(path) as (file, _):
        number = 0
        while line := file.readline(most_bytes + 1):
            number += 1
            if len(line) > most_bytes:
                raise FormatError(f"line {number} is longer than {most_bytes} bytes", path=path)
            if line.strip():
                yield number, parse_json(line, f"line {number}, {what},", path)


def require_shallow(value: Any) -> None:
    """Raise `ValueError` where a JSON value is nested more than 64 deep, which recursion elsewhere could not follow."""
    level, depth = [value], 0
    while level := [part for one in level for part in _parts(one)]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal keys another reader might take the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _require_sound(value: Any) -> None:
    """Raise `ValueError` where a value, however deep, is one that somebody could stumble over later."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
        following: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                following += one.keys()
                following += one.values()
            elif isinstance(one, list):
                following += one
            elif isinstance(one, str):
                one.encode()  # raises where it holds half of a surrogate pair
            elif isinstance(one, int | float) and not -_LARGEST <= one <= _LARGEST:
                raise ValueError("a number is beyond what float64 holds")
        level, depth = following, depth + 1
