"""What a report may say of where things lie: names, never places on a machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_PLACE = re.compile(r"(?<![\w.~/-])~?/(?:[^\s/:'\",;()]+/)+(?=[^\s/])")


def spoken_command(arguments: Sequence[str]) -> str:
    """Return a command line as it was given, places cut down to their last names.

    A path within the checkout stays, for the same command works in another checkout.

    Args:
        arguments: The program, then what it was given: `sys.argv`.
    """
    program = Path(arguments[0])
    called = f"python -m {program.parent.name}" if program.stem == "__main__" else program.stem
    return " ".join([called, *(shlex.quote(spoken_argument(argument)) for argument in arguments[1:])])


def spoken_argument(argument: str) -> str:
    """Return an argument, `NAME=PATH` and `--option=PATH` too, without the directories of a place outside."""
    name, sign, value = argument.rpartition("=")
    path = Path(value)
    if path.is_absolute() or ".." in path.parts or value.startswith("~"):
        value = path.name
    return f"{name}{sign}{value}"


def without_places(text: str) -> str:
    """Return a message without the directories of absolute paths in it."""
    return _PLACE.sub("", text)


def reason_of(error: BaseException) -> str:
    """Return why something failed, for a report."""
    return without_places(f"{type(error).__name__}: {error}")
