"""The section "positions": the positions that each layer holds, canonical JSON under zlib.

A section of a few kilobytes can declare millions of positions. So reading has two steps: every number is checked and
counted, then, if the whole is still wanted, the lists are built, 8 bytes a position.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from kvcompress.errors import FormatError, InputError
from kvcompress.format.json_section import MAX_LAYERS, MAX_NUMBER, MAX_TOKENS, pack_json, unpack_json
from kvcompress.format.strict_json import canonical_json

MAX_POSITIONS_BYTES = 64 << 20
FEW_RUNS = 16  # fewer are always written as runs: a bitmap would hardly be shorter
MAX_POSITIONS = 1 << 25  # in all distinct lists together

_BITS = bytes.maketrans(b"01", b"\0\1")

Run = list[int]


@dataclass(frozen=True, slots=True)
class Positions:
    """What a section declares, every number checked, no list built.

    Attributes:
        layers: For each layer the index of its list.
        lists: The distinct lists as runs [start, count], or as a bitmap whose bits, the highest first, are positions.
        bits: Of a bitmap its length, 0 for runs.
        counts: Of each list how many positions it holds,
        ends: and one more than the largest.
    """

    layers: tuple[int, ...]
    lists: tuple[list[Run] | int, ...]
    bits: tuple[int, ...]
    counts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def held(self) -> list[int]:
        """How many positions each layer holds."""
        return [self.counts[index] for index in self.layers]

    def build(self) -> list[array[int]]:
        """Return the positions of each layer as 64-bit integers; layers that share a list share the array."""
        built = [array("q") for _ in self.lists]
        for found, one, bits in zip(built, self.lists, self.bits, strict=True):
            for part in _parts(one, bits):
                found.extend(part)
        return [built[index] for index in self.layers]


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
    _checked({"layers": layers, "lists": runs}, MAX_TOKENS, InputError)
    forms = [_shorter(form, one) for form, one in zip(runs, lists, strict=True)]
    return pack_json({"layers": layers, "lists": forms}, MAX_POSITIONS_BYTES, "positions")


def read_positions(data: bytes, max_tokens: int = MAX_TOKENS, max_layers: int = MAX_LAYERS) -> Positions:
    """Read and check a "positions" section without building what it declares.

    Args:
        data: The section.
        max_tokens: The most positions that a layer may hold.
        max_layers: The most layers; no more numbers are read than so many layers of so many tokens need.

    Raises:
        FormatError: The section is damaged, too large, or its lists are not strictly increasing.
        MemoryLimitError: Its numbers alone would take more memory than is allowed.
    """
    of_a_list = 3 * (min(max_tokens, MAX_TOKENS) // 2 + 1) + 3  # as many runs as can lie apart, three marks each
    most_values = min(max_layers, MAX_LAYERS) * (of_a_list + 1) + 16
    value = unpack_json(data, MAX_POSITIONS_BYTES, "positions", most_values=most_values, sound=False)
    return _checked(value, max_tokens, FormatError)


def unpack_positions(data: bytes, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Return for each layer its positions; layers with the same positions share one list.

    Args:
        data: A "positions" section.
        max_tokens: The most positions a layer may hold; nothing larger is built, whatever the section claims.

    Raises:
        FormatError: The section is damaged, too large, or its lists are not strictly increasing.
    """
    found = read_positions(data, max_tokens)
    lists = {index: list(layer) for index, layer in zip(found.layers, found.build(), strict=True)}
    return [lists[index] for index in found.layers]


def _parts(form: list[Run] | int, bits: int) -> Iterator[Iterable[int]]:
    """Yield the positions of a list, part by part."""
    if isinstance(form, list):
        yield from (range(start, start + count) for start, count in form)
    else:
        marks = f"{form:0{bits}b}".encode().translate(_BITS)
        yield compress(range(bits), marks)


def _runs(positions: Sequence[int]) -> list[Run]:
    """Return the runs [start, count] of consecutive numbers."""
    runs: list[Run] = []
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


def _shorter(runs: list[Run], positions: Sequence[int]) -> list[Run] | str:
    """Return the form of a list that takes fewer bytes; of equal ones the runs."""
    if len(runs) < FEW_RUNS or positions[-1] >= MAX_TOKENS:
        return runs
    forms: tuple[list[Run] | str, ...] = (runs, _bitmap(positions))
    return min(forms, key=lambda form: len(zlib.compress(canonical_json({"list": form}), 9)))


def _checked(value: Any, max_tokens: int, failure: type[InputError] | type[FormatError]) -> Positions:
    """Check every number of a "positions" section."""

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
    forms: list[list[Run] | int] = []
    numbers: list[tuple[int, int, int]] = []
    total = 0
    for one in lists:
        form, found = _bitmap_numbers(one, max_tokens, require) if isinstance(one, str) else (one, None)
        forms.append(form)
        numbers.append(found or _run_numbers(one, max_tokens, require))
        total += numbers[-1][1]
        require(total <= MAX_POSITIONS, f"has more than {MAX_POSITIONS} positions")
    bits, counts, ends = zip(*numbers, strict=True) if numbers else ((), (), ())
    return Positions(tuple(layers), tuple(forms), bits, counts, ends)


def _bitmap_numbers(
    form: str, max_tokens: int, require: Callable[[bool, str], None]
) -> tuple[int, tuple[int, int, int]]:
    """Return a bitmap as an integer, and its bits, how many are set, and one more than the last of them."""
    require(0 < len(form) < max_tokens / 4 + 1, f"has a bitmap that is not of {max_tokens} tokens at most")
    require(not set(form) - set("0123456789abcdef") and form[-1] != "0", "has a damaged bitmap")
    bitmap, bits, last = int(form, 16), 4 * len(form), int(form[-1], 16)
    return bitmap, (bits, bitmap.bit_count(), bits + 1 - (last & -last).bit_length())


def _run_numbers(runs: Any, max_tokens: int, require: Callable[[bool, str], None]) -> tuple[int, int, int]:
    """Return 0, how many positions runs hold, and one more than the last of them."""
    end, count = -1, 0
    require(isinstance(runs, list), "has a list that is none")
    for run in runs:
        require(isinstance(run, list) and len(run) == 2, "has a run that is not [start, count]")
        require(all(type(number) is int for number in run), "has a run that is not of integers")
        require(run[0] > end and run[1] > 0, "has positions that do not increase")
        end, count = run[0] + run[1] - 1, count + run[1]
        require(end < MAX_NUMBER, "has a position that is too large")
        require(count <= max_tokens, f"has more positions than the {max_tokens} tokens allowed")
    return 0, count, end + 1
