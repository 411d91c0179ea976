"""The way from an entry back to the first: one query, whose cost is the length of the way that is asked for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from kvcompress.store.log import Entry

_BACK = """
WITH RECURSIVE back(id, parent) AS (
    SELECT id, parent FROM entries WHERE id = ?
    UNION ALL
    SELECT entries.id, entries.parent FROM back JOIN entries ON entries.id = back.parent WHERE back.parent < back.id
)
"""
# An entry is younger than its parent, so the ids fall: whatever a damaged table holds, the way ends.


def path_rows(
    tables: sqlite3.Connection, entry: int, kinds: Sequence[str] = (), most: int | None = None, skip: int = 0
) -> list[sqlite3.Row]:
    """Return the rows of `entries` on the way back from an entry, the newest first.

    Args:
        tables: The store's tables.
        entry: Its id.
        kinds: Only those of these kinds; none means all.
        most: No more than so many.
        skip: Leave the first ones out.
    """
    marks = f"WHERE entries.kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
    asked = f"{_BACK} SELECT entries.* FROM back CROSS JOIN entries ON entries.id = back.id {marks} LIMIT ? OFFSET ?"
    return tables.execute(asked, (entry, *kinds, -1 if most is None else most, skip)).fetchall()


def path_ids(tables: sqlite3.Connection, entry: int) -> list[int]:
    """Return the ids on the way back from an entry, the newest first."""
    return [row[0] for row in tables.execute(f"{_BACK} SELECT id FROM back", (entry,))]


def common_turns(here: Iterable[Entry], there: Iterable[Entry]) -> int:
    """Return with how many equal segments two rows of turns begin."""
    pairs = enumerate(zip(here, there, strict=False))
    count = 0
    for index, (one, other) in pairs:
        if one.segment != other.segment:
            return index
        count = index + 1
    return count
