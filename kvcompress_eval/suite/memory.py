"""Peak memory of a call: how far the process's resident set rises above where it stood."""

from __future__ import annotations

import ctypes
import gc
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


def _give_back_free_memory() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it; others show what they show
    if trim is not None:
        trim(0)


def peak_bytes(call: Callable[[], T]) -> tuple[T, int | None]:
    """Run a call and return its result and the highest rise of the resident set, sampled each millisecond.

    What the C library holds for later use is given back first: else a second call of a kind would seem to need nothing.
    """
    _give_back_free_memory()
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
