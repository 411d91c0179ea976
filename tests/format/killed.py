"""Children that are killed, as `kill -9` kills them, at a moment of our choosing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any


def killed_after(seconds: float, work: Callable[[], None]) -> bool:
    """Run work in a child, kill it so many seconds after it began, and return whether it was still at it."""
    begun, begins = os.pipe()

    def told() -> None:
        os.write(begins, b".")
        work()

    child = _fork(told)
    os.read(begun, 1)
    os.close(begun)
    os.close(begins)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_at_call(number: int, places: list[tuple[Any, str]], work: Callable[[], None]) -> bool:
    """Run work in a child that dies before the call of this number, counted from 0, of any of some functions.

    Args:
        number: Of the call.
        places: Modules or classes and names of the functions in them.
        work: What the child does.

    Returns:
        Whether there were so many calls.
    """
    left = [number]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*args, **options)

        return call

    def patched() -> None:
        for owner, name in places:
            setattr(owner, name, counted(getattr(owner, name)))
        work()

    return os.WIFSIGNALED(os.waitpid(_fork(patched), 0)[1])


def in_child(work: Callable[[], None]) -> str:
    """Run work in a child and return what it raised, in words."""
    reading, writing = os.pipe()

    def told() -> None:
        try:
            work()
        except Exception as error:
            os.write(writing, str(error).encode())

    child = _fork(told)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)
