"""Every error that a user can cause. The command line catches `KVCompressError` once and prints one line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_SHOWN = 2000
"""Characters of a text of foreign origin that are shown; what is longer is cut, for it has to stay a line."""


def shown(text: object, keep: str = "") -> str:
    r"""Return a text as it may be shown on a terminal: in one line, and nothing in it but what prints.

    Control characters, line breaks, marks that turn the direction of writing and halves of surrogate pairs become
    escapes such as `\x1b`; letters of all scripts stay. A terminal that does not know a letter is a matter of its
    stream, which is to be opened with `errors="backslashreplace"`.

    Args:
        text: Anything; what is no text is converted first.
        keep: Characters that stay as they are, such as line breaks.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(one if one.isprintable() or one in keep else one.encode("unicode_escape").decode() for one in found)


def _cut(text: object) -> str:
    found = str(text)
    return found if len(found) <= LONGEST_SHOWN else f"{found[:LONGEST_SHOWN]}..."


class KVCompressError(Exception):
    """Any error of this package whose message already says what happened and what to do about it.

    Args:
        what: What is wrong, in one line, without a full stop.
        remedy: What the user can do, in one line.
        path: The file or directory concerned, if there is one.
    """

    def __init__(self, what: str, remedy: str = "", *, path: object = None) -> None:
        super().__init__(what)
        self.what, self.remedy, self.path = what, remedy, path

    def __str__(self) -> str:
        """Return the whole line: path, what, remedy; what does not print is escaped, see `shown`."""
        where = f"{shown(_cut(self.path))}: " if self.path is not None else ""
        then = f" {shown(_cut(self.remedy))}." if self.remedy else ""
        return f"{where}{shown(_cut(self.what))}.{then}"


class InputError(KVCompressError):
    """An argument, a session, a model or a cache that cannot be used."""


class MemoryLimitError(InputError):
    """What a file declares would take more memory than the user allows, see `kvcompress.format.limits`."""


class FormatError(KVCompressError):
    """A file that does not follow its format. `offset` is the byte where reading stopped."""

    def __init__(self, what: str, remedy: str = "", *, path: object = None, offset: int | None = None) -> None:
        self.offset = offset
        super().__init__(what if offset is None else f"{what} (at byte {offset})", remedy, path=path)


class IntegrityError(FormatError):
    """A file whose checksum does not match its content."""


class MismatchError(KVCompressError):
    """Two partners that do not belong together; the message names both fingerprints."""

    def __init__(self, part: str, expected: str, found: str, remedy: str = "", *, path: object = None) -> None:
        self.part, self.expected, self.found = part, expected, found
        super().__init__(f"mismatch in {part}: expected {expected}, found {found}", remedy, path=path)


class CheckpointError(KVCompressError):
    """A codec or model directory that is missing, incomplete or damaged."""


LONGEST_REASON = 200


def first_line(error: BaseException) -> str:
    """Return kind and first line of an error of some library, without its full stop."""
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text[:LONGEST_REASON]}"


def innermost(error: BaseException) -> str:
    """Return the same of the error that it all began with: the outer ones say what could not be done, not why."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextmanager
def about(path: object) -> Iterator[None]:
    """Name `path` in any of our errors raised inside that does not name one yet."""
    try:
        yield
    except KVCompressError as error:
        if error.path is None:
            error.path = path
        raise


def require_positive(what: str, value: float, remedy: str = "") -> None:
    """Raise `InputError` unless a number is positive and finite; `what` names it, such as "a size ratio"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{what} must be a positive number, not {value!r}", remedy)
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{what} must be a positive number, not {value:g}", remedy)
