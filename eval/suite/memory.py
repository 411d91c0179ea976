"""Peak memory of a call: how far the process's resident set rises above where it stood."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_SAMPLE_SECONDS = 0.001


def resident_bytes() -> int | None:
    """Return the resident set of this process, None where the system does not say."""
    try:
        line = next(row for row in _STATUS.read_text().splitlines() if row.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def peak_bytes(call: Callable[[], T]) -> tuple[T, int | None]:
    """Run a call and return its result and the highest rise of the resident set, sampled each millisecond.

    Memory that the allocator already held is not counted, so the first call of a kind shows more than the next.
    """
    before = resident_bytes()
    if before is None:
        return call(), None
    highest, done = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_SAMPLE_SECONDS):
            highest = max(highest, resident_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = call()
        highest = max(highest, resident_bytes() or 0)
    finally:
        done.set()
        watcher.join()
    return result, highest - before
