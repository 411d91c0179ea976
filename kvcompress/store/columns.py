"""What the columns of the tables hold. SQLite keeps any type in any column, so a row is looked at before it is used.

Here is the one place where this is done: a connection makes every row through `require_columns`. A text where a number
belongs would otherwise fail in whatever reads it, and a number where bytes belong would become as many zeros.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from typing import Any

from kvcompress.errors import IntegrityError

RESTORE = "Restore the store from a copy"

_BLOBS = ("anchor", "digest", "prefix")
_BLOBS_OR_NOTHING = ("segment", "tokens")
_TEXTS = ("kind", "context", "settings", "ring")
_TEXTS_OR_NOTHING = ("name", "origin", "writer")
_COUNTS = ("id", "start", "end", "held", "entries", "number", "session", "bytes", "epoch", "fence", "generation")
_TIMES = ("created", "used")

_WANTED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_BLOBS, (bytes,)),
    **dict.fromkeys(_BLOBS_OR_NOTHING, (bytes, type(None))),
    **dict.fromkeys(_TEXTS, (str,)),
    **dict.fromkeys(_TEXTS_OR_NOTHING, (str, type(None))),
    **dict.fromkeys(_COUNTS, (int,)),
    **dict.fromkeys(_TIMES, (int, float)),
    **dict.fromkeys(("uses", "stored_bytes", "added_bytes", "written_bytes"), (int,)),
    "parent": (int, type(None)),  # of an entry; a segment's is a digest, see below
}
_SEGMENT = {**_WANTED, "parent": (bytes,)}
"""Of the table `segments`, whose rows are told by their column `prefix`."""

_KINDS = {int: "a number", float: "a number", str: "a text", bytes: "bytes", type(None): "nothing"}


def require_columns(names: Sequence[str], values: Sequence[Any]) -> None:
    """Raise `IntegrityError` where a value of a row is not of its column's type, uncovered where it was encrypted.

    Args:
        names: Of the columns; one that is no column of ours, such as a sum, is not looked at.
        values: What they hold.
    """
    types = _SEGMENT if "prefix" in names else _WANTED
    for name, value in zip(names, values, strict=True):
        wanted = types.get(name)
        if wanted is None:
            continue
        kind = type(value)
        if kind not in wanted:
            raise _changed(name, _KINDS.get(kind, "something else"))
        if (name in _COUNTS and value < 0) or (kind is float and not math.isfinite(value)):
            raise _changed(name, "an impossible number")


def _changed(name: str, held: str) -> IntegrityError:
    return IntegrityError(f"tampered with or damaged: the column {name!r} of the database holds {held}", RESTORE)


def only_row(tables: sqlite3.Connection) -> sqlite3.Row:
    """Return the one row of the table `store`.

    Raises:
        IntegrityError: It is missing.
    """
    row: sqlite3.Row | None = tables.execute("SELECT * FROM store").fetchone()
    if row is None:
        raise IntegrityError("tampered with or damaged: the database does not say what store it is", RESTORE)
    return row


def session_row(tables: sqlite3.Connection, session: int) -> sqlite3.Row:
    """Return the row of a session without its name and writer.

    Raises:
        IntegrityError: It is missing, though something leads to it.
    """
    asked = "SELECT id, created, used, entries, anchor, digest, origin FROM sessions WHERE id = ?"
    row: sqlite3.Row | None = tables.execute(asked, (session,)).fetchone()
    if row is None:
        raise IntegrityError("tampered with or damaged: a session has a name and nothing else", RESTORE)
    return row
