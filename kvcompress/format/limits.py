"""The limit on memory that a file may need, checked before memory is allocated.

```python
with memory_limit("512MB"):
    snapshot = codec.decode(encoded)      # MemoryLimitError in one line, where the file declares more
```
A few hundred bytes can truthfully declare a session of a million tokens, for tokens that are the prior's own guess cost
nothing. So the size of a file is no bound, and who reads files of others sets one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kvcompress.errors import InputError, MemoryLimitError, shown

DEFAULT_BYTES = 4_000_000_000
OPTION = "--max-memory"

_UNITS = {"": 1, "B": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", 1)
    for unit, base in ((f"{letter}B", 1000), (f"{letter}IB", 1024), (letter, 1000))
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)", re.ASCII)
_limit_bytes: ContextVar[int] = ContextVar("kvcompress_max_memory_bytes", default=DEFAULT_BYTES)


def parse_bytes(size: str | int) -> int:
    """Return a number of bytes, given as such or as text: "4GB", "512 MB", "1.5GiB", "4000000000".

    Raises:
        InputError: It is neither, or not positive.
    """
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    unit = None if found is None else _UNITS.get(found[2].upper())
    wanted = size if type(size) is int else 0
    if found is not None and unit is not None:
        wanted = int(float(found[1]) * unit)
    if wanted <= 0:
        told = shown(repr(size)) if isinstance(size, str) or abs(size) < DEFAULT_BYTES else "this"
        raise InputError(f"{told} is no amount of memory", "Give one such as 4GB, 512MB or a number of bytes")
    return wanted


@contextmanager
def memory_limit(size: str | int | None) -> Iterator[None]:
    """Set the limit for what is read inside; None leaves it as it is, 4 GB where nobody has set one.

    Raises:
        InputError: The size is none, see `parse_bytes`.
    """
    if size is None:
        yield
        return
    token = _limit_bytes.set(parse_bytes(size))
    try:
        yield
    finally:
        _limit_bytes.reset(token)


def max_memory_bytes() -> int:
    """Return the limit in force."""
    return _limit_bytes.get()


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse what would need more memory than the limit allows.

    Args:
        needed_bytes: Worked out from what the file declares.
        what: What needs it, such as "decoding 1,024 tokens".

    Raises:
        MemoryLimitError: The limit is lower.
    """
    limit = max_memory_bytes()
    if needed_bytes > limit:
        told = f"{what} needs about {in_words(needed_bytes)} of memory, more than the limit of {in_words(limit)}"
        raise MemoryLimitError(told, f"If the file is to be trusted, allow more with {OPTION}")


def in_words(size_bytes: int) -> str:
    """Return a number of bytes as people say it: "3.27 GB"."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= 1000 * factor:
            return f"{size_bytes // factor:,} {unit}"
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes} bytes"
