"""Entropy coding of integer symbols with integer tables, by asymmetric numeral systems (constriction).

The stream holds the coder's 32-bit little-endian words, then the escaped symbols as int32, then
their number as uint32. Symbols are coded table by table, so that one call of the library serves
all symbols of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import constriction
import numpy as np
import numpy.typing as npt

from kvcompress.errors import FormatError, InputError
from kvcompress.format.reader import Reader
from tinyvae.tables import TABLE_TOTAL

Ints = npt.NDArray[np.int32]

MOST_CHOICES = 255
MOST_LEVELS = 254


@dataclass(frozen=True, eq=False)
class TableBank:
    """Frozen integer tables, one per level.

    Attributes:
        counts: [sum of lengths] int32; a table runs over symbols -m..m, then the escape.
        offsets: [levels + 1] int32, where each table starts.
    """

    counts: Ints
    offsets: Ints

    def model(self, level: int) -> constriction.stream.model.Categorical:
        """Return the coder's model of a level.

        The counts sum to a power of two, so the division is exact and the fixed-point model that
        the coder derives is the same on every machine.
        """
        table = self.counts[self.offsets[level] : self.offsets[level + 1]].astype(np.float64)
        return constriction.stream.model.Categorical(table / table.sum(), perfect=False)

    def code_lengths(self, symbols: Ints, levels: Ints) -> npt.NDArray[np.float64]:
        """Return the ideal code length in bits of every symbol; an escape counts 32 more."""
        coded = np.flatnonzero(levels.ravel() >= 0)
        level, symbol = levels.ravel()[coded], symbols.ravel()[coded]
        top = (np.diff(self.offsets) - 2)[level] // 2
        inside = np.abs(symbol) <= top
        entry = self.offsets[level] + np.where(inside, symbol + top, 2 * top + 1)
        bits = np.zeros(symbols.size)
        bits[coded] = self.lengths[entry] + np.where(inside, 0.0, 32.0)
        return bits.reshape(symbols.shape)

    @cached_property
    def lengths(self) -> npt.NDArray[np.float64]:
        """Ideal code length in bits of every entry of every table, [sum of lengths] float64."""
        sums = np.add.reduceat(self.counts.astype(np.float64), self.offsets[:-1])
        found: npt.NDArray[np.float64] = -np.log2(self.counts / np.repeat(sums, np.diff(self.offsets)))
        return found

    def largest(self, level: int) -> int:
        """Return the largest magnitude in a level's table."""
        return int(self.offsets[level + 1] - self.offsets[level] - 2) // 2


def _by_level(levels: Ints) -> tuple[npt.NDArray[np.intp], list[tuple[int, int, int]]]:
    """Return the stable order that sorts flat levels, and (level, start, stop) of each run; negatives left out."""
    shifted = levels.ravel().astype(np.uint8) + np.uint8(1)  # bytes sort fastest; the levels are few, and -1 becomes 0
    order = np.argsort(shifted, kind="stable")
    starts = np.searchsorted(shifted, np.arange(1, MOST_LEVELS + 2), sorter=order).tolist()
    runs = [(level, starts[level], starts[level + 1]) for level in range(MOST_LEVELS)]
    return order, [run for run in runs if run[1] < run[2]]


def encode_symbols(symbols: Ints, levels: Ints, bank: TableBank) -> bytes:
    """Code symbols [T, R] int32 under the tables of their levels [T, R] int32 (negative: not coded)."""
    order, runs = _by_level(levels)
    flat = symbols.ravel()[order]
    coder = constriction.stream.stack.AnsCoder()
    escaped: list[Ints] = []
    for level, start, stop in reversed(runs):
        top = bank.largest(level)
        part = flat[start:stop]
        outside = np.abs(part) > top
        if outside.any():
            escaped.append(part[outside])
        coder.encode_reverse(np.where(outside, 2 * top + 1, part + top).astype(np.int32), bank.model(level))
    tail = np.concatenate(escaped[::-1]) if escaped else np.zeros(0, np.int32)
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    escapes: bytes = tail.astype("<i4").tobytes() + len(tail).to_bytes(4, "little")
    return words + escapes


def decode_symbols(data: bytes, levels: Ints, bank: TableBank) -> Ints:
    """Return the symbols [T, R] int32 that were coded under these levels.

    Raises:
        FormatError: The stream is cut, too long, or not a stream of these levels.
    """
    if len(data) < 4 or len(data) % 4:
        raise FormatError("the symbol stream is cut", offset=len(data))
    escapes = Reader(data[-4:], "the symbol stream").u32()
    words_end = len(data) - 4 - 4 * escapes
    if words_end < 0:
        raise FormatError("the symbol stream claims more escapes than it holds", offset=len(data) - 4)
    tail = np.frombuffer(data[words_end:-4], "<i4")
    order, runs = _by_level(levels)
    flat = np.zeros(levels.size, np.int32)
    taken = 0
    coder = _coder(data[:words_end], "the symbol stream")
    try:
        for level, start, stop in runs:
            top = bank.largest(level)
            part = coder.decode(bank.model(level), stop - start) - top
            outside = np.flatnonzero(part == top + 1)
            part[outside] = tail[taken : taken + len(outside)]
            taken += len(outside)
            flat[order[start:stop]] = part
    except (ValueError, AssertionError) as error:
        raise FormatError("the symbol stream does not decode", offset=0) from error
    if taken != len(tail) or not coder.is_empty():
        raise FormatError("the symbol stream holds more than its symbols", offset=words_end)
    return flat.reshape(levels.shape)


def encode_choices(values: npt.NDArray[np.int16]) -> bytes:
    """Code one of a few integers for each token.

    The number of distinct values as u8, each as i16 with its number of occurrences as u32, then 32-bit words: the
    tokens' values under the distribution that these numbers are. A single value needs no words.

    Args:
        values: [N] int16 of at most 255 distinct values.
    """
    distinct, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) > MOST_CHOICES:
        raise InputError(f"{len(distinct)} different offsets are more than {MOST_CHOICES}", "Use fewer tiers")
    head = len(distinct).to_bytes(1, "little") + distinct.astype("<i2").tobytes() + counts.astype("<u4").tobytes()
    if len(distinct) < 2:
        return head
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(index.astype(np.int32), _choice_model(counts))
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return head + words


def decode_choices(data: bytes, tokens: int) -> npt.NDArray[np.int16]:
    """Return the integers [N] int16 that `encode_choices` coded for N tokens.

    Raises:
        FormatError: The section is cut, too long, or not of so many tokens.
    """
    distinct, counts, words = _choices(data)
    if int(counts.sum()) != tokens:
        raise FormatError(f"the list of offsets is not one of {tokens} tokens", offset=0)
    if len(distinct) < 2:
        return np.repeat(distinct, tokens)[:tokens]
    coder = _coder(words, "the list of offsets")
    try:
        index = coder.decode(_choice_model(counts), tokens)
    except (ValueError, AssertionError) as error:
        raise FormatError("the list of offsets does not decode", offset=0) from error
    if not coder.is_empty() or not np.array_equal(np.bincount(index, minlength=len(distinct)), counts):
        raise FormatError("the list of offsets does not decode", offset=0)
    found: npt.NDArray[np.int16] = distinct[index]
    return found


def largest_choice(data: bytes) -> int | None:
    """Return the largest integer that `encode_choices` coded, without decoding the others; None for no tokens.

    Raises:
        FormatError: The section is cut.
    """
    distinct = _choices(data)[0]
    return int(distinct[-1]) if len(distinct) else None


def _choices(data: bytes) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64], bytes]:
    """Return the distinct integers, ascending, how many tokens have each, and the coder's words."""
    reader = Reader(data, "the list of offsets")
    kinds = reader.u8()
    distinct = reader.numbers("<i2", kinds).astype(np.int16)
    counts = reader.numbers("<u4", kinds).astype(np.int64)
    if (counts == 0).any() or (np.diff(distinct.astype(np.int64)) <= 0).any():
        raise FormatError("the list of offsets does not ascend, or names one that no token has", offset=1)
    if kinds < 2:
        reader.require_end()
    return distinct, counts, reader.rest()


def _coder(words: bytes, what: str) -> constriction.stream.stack.AnsCoder:
    """Return a coder that is about to decode 32-bit words; a stream of its kind never ends in a zero."""
    if len(words) % 4:
        raise FormatError(f"{what} is cut", offset=len(words))
    try:
        return constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    except ValueError as error:
        raise FormatError(f"{what} ends in a zero word, as no coder writes it", offset=len(words)) from error


def _choice_model(counts: npt.NDArray[np.int64]) -> constriction.stream.model.Categorical:
    """Return the coder's model of counts, brought by integers to a power of two, so that every division is exact."""
    share = counts * (TABLE_TOTAL - len(counts))
    table = share // counts.sum() + 1
    most = np.argsort(-(share % counts.sum()), kind="stable")[: TABLE_TOTAL - int(table.sum())]
    table[most] += 1
    return constriction.stream.model.Categorical(table.astype(np.float64) / TABLE_TOTAL, perfect=False)
