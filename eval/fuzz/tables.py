"""Changes to a SQLite database by its rows: cells of any type, rows gone, doubled or exchanged, other tables."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from random import Random
from typing import Any

from eval.fuzz.mutate import EXTREMES, bytes_changed, json_text

_WRITE_VERSION, _READ_VERSION = 18, 19
_ROLLBACK, _WAL = 1, 2
"""What these bytes of a database's header say of its journal; one in memory cannot have a write-ahead log."""

_STATEMENTS = (
    "PRAGMA user_version = 0",
    "PRAGMA user_version = 1",
    "PRAGMA user_version = 2",
    "PRAGMA user_version = 77",
    "PRAGMA user_version = -1",
    "PRAGMA application_id = 0",
    "DROP TABLE names",
    "DROP TABLE keyring",
    "DROP INDEX segments_after",
    "CREATE TABLE other (a)",
    "CREATE VIEW others AS SELECT * FROM sessions",
    "CREATE TRIGGER t AFTER UPDATE ON sessions BEGIN DELETE FROM entries; END",
    "ALTER TABLE names RENAME COLUMN number TO other",
    "ALTER TABLE entries ADD COLUMN other",
)
_PLAIN = (int, float, str, type(None))
Row = list[Any]


def rows_changed(chance: Random, data: bytes) -> bytes:
    """Return a database after one to three changes to its rows, now and then to its tables."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as tables:
        tables.deserialize(_journal(data, _ROLLBACK))
        for _ in range(chance.choice((1, 1, 1, 1, 2, 3))):
            if chance.random() < 0.05:
                with suppress(sqlite3.Error):
                    tables.execute(chance.choice(_STATEMENTS))
            else:
                _change_table(chance, tables)
        return _journal(tables.serialize(), _WAL)


def _journal(data: bytes, kind: int) -> bytes:
    found = bytearray(data)
    found[_WRITE_VERSION] = found[_READ_VERSION] = kind
    return bytes(found)


def _change_table(chance: Random, tables: sqlite3.Connection) -> None:
    """Change the rows of one table, and write all of them anew; a row that the table refuses is left out."""
    names = [row[0] for row in tables.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    filled = [name for name in names if tables.execute(f"SELECT 1 FROM {name}").fetchone()]
    if not filled:
        return
    table = chance.choice(filled)
    rows = [list(row) for row in tables.execute(f"SELECT * FROM {table}")]
    _change_rows(chance, rows)
    tables.execute(f"DELETE FROM {table}")
    for row in rows:
        with suppress(sqlite3.Error, OverflowError, UnicodeError):
            tables.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _change_rows(chance: Random, rows: list[Row]) -> None:
    row, other = chance.choice(rows), chance.choice(rows)
    column, another = chance.randrange(len(row)), chance.randrange(len(row))
    kind = chance.randrange(10)
    if kind == 0:
        rows.remove(row)
    elif kind == 1:
        double = list(row)
        double[0] = double[0] + chance.choice((1, 2, 1 << 32)) if isinstance(double[0], int) else _cell(chance, row[0])
        rows.append(double)
    elif kind == 2:
        row[1:], other[1:] = other[1:], row[1:]
    elif kind == 3:
        row[column], other[column] = other[column], row[column]
    elif kind == 4:
        row[column] = other[column]
    elif kind == 5:
        row[column] = row[another]
    else:
        row[column] = _cell(chance, row[column])


def _cell(chance: Random, value: Any) -> Any:
    """Return another value: one of any type, a neighbour of the old one, or the old one with a change in it."""
    kind = chance.randrange(6)
    if kind == 0:
        extreme = chance.choice(EXTREMES)
        return extreme if isinstance(extreme, _PLAIN) else json.dumps(extreme).encode()
    if kind == 1:
        return chance.choice((b"", bytes(8), bytes(32), chance.randbytes(32), b"\xff\xfe", b"{}", "{}", "null", "[]"))
    if isinstance(value, int | float):
        return value + chance.choice((-1, 1, 2, -value, 1 << 32, 1 << 40))
    if isinstance(value, bytes):
        return bytes_changed(chance, value)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):  # a change before this one may have left text, or JSON too deep
            if value.startswith("{"):
                return json_text(chance, json.loads(value)).decode(errors="replace")
        return bytes_changed(chance, value.encode()).decode(errors="replace")
    return chance.choice((0, 1, "", b"", "a"))
