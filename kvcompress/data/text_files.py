"""Read text files with or without a byte order mark, and refuse those that are no text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kvcompress.errors import InputError

MARK = "\ufeff"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # that of UTF-32 LE begins as UTF-16's


@contextmanager
def opened_text(path: Path, remedy: str) -> Iterator[TextIO]:
    """Open a UTF-8 file for reading, behind its byte order mark if it has one.

    Args:
        path: A file, or a pipe: it is read once.
        remedy: What to name instead where it cannot be read.

    Raises:
        InputError: It cannot be read, or is not UTF-8; also while it is read inside the block.
    """
    try:
        with path.open("rb") as file:
            if file.peek(4).startswith(_WIDE):
                raise InputError("is UTF-16 or UTF-32 text", "Save it as UTF-8", path=path)
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")  # its ends of lines are part of a text
    except UnicodeDecodeError as error:
        raise InputError("cannot be read (not UTF-8 text)", remedy, path=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", remedy, path=path) from error


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without byte order mark, ends of lines as they are; errors as `opened_text`."""
    with opened_text(path, "Name a text file") as file:
        return file.read()


def without_mark(text: str) -> str:
    """Return text without a byte order mark before it."""
    return text.removeprefix(MARK)
