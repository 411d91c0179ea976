"""Who writes to a session: one process at a time, and none that has died stands in the way."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

GONE, HERE, UNKNOWN = "gone", "here", "unknown"
_WRITING: set[str] = set()
"""Ids of the writers of this process."""


def this_writer() -> dict[str, Any]:
    """Return what tells this process from every other one, JSON-able, and a random id."""
    name = secrets.token_hex(8)
    _WRITING.add(name)
    return {"id": name, "pid": os.getpid(), "started": _started(os.getpid()), **_machine()}


def retire(writer: Mapping[str, Any]) -> None:
    """Note that a writer of this process writes no more, though its process lives."""
    _WRITING.discard(writer["id"])


def state_of(writer: Mapping[str, Any]) -> str:
    """Tell whether a writer is `GONE`, `HERE` (it lives) or `UNKNOWN` (on another machine).

    A process is the one that was noted if its number and the moment when it started are the same; after a restart of
    the machine none is.
    """
    machine = _machine()
    if writer.get("host") != machine["host"]:
        return UNKNOWN
    if writer.get("boot") != machine["boot"]:
        return GONE
    if writer.get("space") != machine["space"]:
        return UNKNOWN
    pid = writer.get("pid")
    if type(pid) is not int or pid <= 0:
        return GONE
    if pid == os.getpid() and writer.get("id") not in _WRITING:
        return GONE
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return GONE
    except PermissionError:
        pass
    return HERE if _started(pid) == writer.get("started") else GONE


def read_writer(text: str | None) -> dict[str, Any] | None:
    """Return the writer that a session's row names, None where it names none."""
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@lru_cache(maxsize=1)
def _machine() -> dict[str, Any]:
    return {"host": socket.gethostname(), "boot": _text("/proc/sys/kernel/random/boot_id"), "space": _process_space()}


def _process_space() -> str:
    """Return the name space of process numbers; containers on one machine may each have a process 7."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the machine did; "" where the system does not say."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields or fields[0] in "ZX":  # it has ended and waits to be noticed
        return "" if not fields else "ended"
    return fields[19]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
