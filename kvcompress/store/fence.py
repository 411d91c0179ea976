"""The fence around a session: whoever writes to it is noted in its row, and looked at within every change."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

from kvcompress.errors import InputError
from kvcompress.store.columns import session_row
from kvcompress.store.writer import GONE, read_writer, state_of

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession


def require_writable(session: StoredSession) -> None:
    """Raise `InputError` where another process writes to a session; says so before any work is done."""
    with session.store.database.read() as tables:
        _fenced(tables, session)


def _fenced(tables: sqlite3.Connection, session: StoredSession) -> bool:
    """Tell whether this store is the session's writer already; raises `InputError` where a living other one is."""
    row = tables.execute("SELECT name, writer FROM sessions WHERE id = ?", (session.id,)).fetchone()
    if row is None or row["name"] is None:
        raise InputError(f"the session {session.name!r} was removed", "See `kvcompress store list`")
    writer = read_writer(row["writer"])
    if writer is None or writer == session.store.writer:
        return writer is not None
    if state_of(writer) != GONE:
        who = f"process {writer.get('pid')} on {str(writer.get('host'))[:60]}"
        raise InputError(
            f"the session {session.name!r} is being written by {who}", "Wait until that is done, or branch"
        )
    return False


def claim(tables: sqlite3.Connection, session: StoredSession, entries: int | None = None) -> None:
    """Become a session's writer within a transaction; who died is succeeded.

    Args:
        tables: The store's tables, in a transaction that writes.
        session: The session.
        entries: How many entries the caller has seen, and goes on from.

    Raises:
        InputError: Another process writes to it, or has added an entry meanwhile.
    """
    if not _fenced(tables, session):
        mine = (json.dumps(session.store.writer), session.id)
        tables.execute("UPDATE sessions SET writer = ?, fence = fence + 1 WHERE id = ?", mine)
    if entries is not None:
        count = session_row(tables, session.id)["entries"]
        if count != entries:
            what = f"the session {session.name!r} has grown by another writer meanwhile"
            raise InputError(what, "Resume it and go on from there, or branch")
