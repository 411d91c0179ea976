"""What a store was told, as its database holds it: a limit, what gives way first, where segments lie, floors."""

from __future__ import annotations

import sqlite3
from typing import Any

from kvcompress.errors import InputError, require_positive
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.strict_json import canonical_json, parse_json
from kvcompress.store.columns import only_row
from kvcompress.store.database import Database

AGE, USE = "age", "use"
LIMIT, EVICT, SEGMENTS, FLOORS = "max_bytes", "evict", "segments", "floors"


def settings_of(tables: sqlite3.Connection) -> dict[str, Any]:
    """Return the settings of a store.

    Raises:
        FormatError: They are damaged.
    """
    what = "the store's settings:"
    found = parse_json(only_row(tables)["settings"].encode(), "what the store was told")
    given = JsonFields(found, what)
    if found.get(LIMIT) is not None:
        given.integer(LIMIT)
    if found.get(EVICT, USE) not in (AGE, USE):
        raise given.bad(EVICT, f"{AGE} or {USE}")
    if found.get(SEGMENTS) is not None:
        given.text(SEGMENTS)
    for place, floor in JsonFields(found.get(FLOORS, {}), f"{what} {FLOORS!r}").items():
        _require_floor(place, floor)
    return dict(found)


def limit(max_bytes: int | None, evict: str) -> dict[str, Any]:
    """Return the settings of a bound on what a store takes, None for none.

    Raises:
        InputError: The bound is not positive, or the order of eviction unknown.
    """
    if max_bytes is not None:
        require_positive("a bound in bytes", max_bytes)
    if evict not in (AGE, USE):
        raise InputError(f"{evict!r} is no order of eviction", f"Use {AGE} or {USE}")
    return {LIMIT: max_bytes, EVICT: evict}


def keep(database: Database, changes: dict[str, Any]) -> None:
    """Write settings into a store's database, beside those that it holds."""
    with database.write() as tables:
        settings = canonical_json(settings_of(tables) | changes).decode()
        tables.execute("UPDATE store SET settings = ?", (settings,))


def _require_floor(place: str, floor: object) -> None:
    """Raise `FormatError` unless a floor is what `kvcompress.store.floor` keeps."""
    names = ("read_seconds", "read_token_seconds", "restore_seconds", "restore_token_seconds")
    given = JsonFields(floor, f"the floor {place[:80]!r} of the store:", only=names)
    for name in names:
        given.number(name, least=0)
