"""What commands write into the README: the lines between two marks, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

from kvcompress.errors import InputError
from kvcompress.format.atomic import atomic_write


def write_between(path: Path, name: str, lines: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Args:
        path: The page.
        name: Of the marks, each of which has a line of its own.
        lines: The new lines, the last one ended.

    Raises:
        InputError: The page has no such marks.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    head, found, rest = path.read_text(encoding="utf-8").partition(opening)
    _, ended, tail = rest.partition(closing)
    if not (found and ended):
        raise InputError(f"has no place for results between {opening.strip()} and {closing.strip()}", path=path)
    atomic_write(path, [(head + opening + lines + closing + tail).encode()], force=True)
