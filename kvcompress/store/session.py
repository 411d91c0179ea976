"""One session of a store: a log that grows, and a state that moves along it.

```
entry    0 append   1 append   2 checkpoint "a"   3 append   4 rewind to 2   5 append
parent   -          0          1                  2          2               4
```
Every entry goes on from its parent, and the newest entry is the session's state: rewinding and popping are entries too,
and take nothing away. The turns of a state are the entries with tokens on the way back to the first.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcompress.errors import InputError
from kvcompress.store.columns import session_row
from kvcompress.store.fence import claim, require_writable
from kvcompress.store.log import BRANCH, CHECKPOINT, FORGET, POP, REWIND, TURNS, Entry, entry_of
from kvcompress.store.path import path_rows
from kvcompress.store.reading import Diff, SessionLog
from kvcompress.store.rows import NewEntry, add, state_of_session
from kvcompress.store.store import LONGEST_NAME, new_session

if TYPE_CHECKING:
    from torch import Tensor

    from kvcompress.snapshot import KVSnapshot


class StoredSession(SessionLog):
    """A session of a store, to be read and written; `Store.session` gives it."""

    # -- writing

    def append(
        self,
        snapshot: KVSnapshot,
        *,
        quality: str | None = None,
        lossless: bool = False,
        codec: str | Path | None = None,
        cuts: Sequence[int] = (),
        said: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Add what a snapshot holds beyond the present state; acknowledged when it returns.

        Where the store holds the same tokens after the same segment already, coded by the same codec at the same
        quality, that segment is taken; without loss only where it comes out the same.

        Args:
            snapshot: The whole session, which begins with the tokens of the present state.
            quality: "transparent" (the default), "high" or "usable".
            lossless: Or the identical bits.
            codec: Name, directory or Hub id; None takes the store's, or the one at hand that fits.
            cuts: Token counts at which a segment is to end, so that other sessions can share it.
            said: Goes into the entry's context as `said`, JSON-able.

        Returns:
            The last entry that was added; the present one where the snapshot holds nothing new.

        Raises:
            InputError: The snapshot does not begin as the session does, the options cannot be met, another process
                writes to the session, or there is no room.
            MismatchError: The snapshot is of another model than the session.
        """
        from kvcompress.store.appending import append
        from kvcompress.store.segment import Coding

        return append(self, snapshot, Coding(quality, lossless, codec), cuts, said or {})

    def append_tokens(
        self, token_ids: Tensor, snapshot: KVSnapshot | None = None, *, said: Mapping[str, Any] | None = None
    ) -> Entry:
        """Add tokens whose keys and values are not stored, as the ids alone; a model computes them at resume.

        Args:
            token_ids: [N] int64, of the whole session.
            snapshot: Says the origin where the session has none yet.
            said: Goes into the entry's context as `said`, JSON-able.

        Raises:
            InputError: As `append`.
        """
        from kvcompress.store.appending import append_tokens

        return append_tokens(self, token_ids, snapshot, said or {})

    def checkpoint(self, name: str = "", *, said: Mapping[str, Any] | None = None) -> Entry:
        """Mark the present state; with a name it is kept until that is forgotten or given to another state.

        Raises:
            InputError: The name cannot be one, or another process writes to the session.
        """
        if name:
            _require_name(name)
        context = ({"name": name} if name else {}) | ({"said": dict(said)} if said else {})

        def note(tables: sqlite3.Connection, entry: Entry) -> None:
            if name:
                row = (self.id, self.store.cover.name(name, self.id), entry.number)
                tables.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", row)

        return self._mark(CHECKPOINT, lambda head: head, context, note)

    def forget(self, name: str) -> Entry:
        """Take a name away; what nothing else leads to goes with the next `gc`.

        Raises:
            InputError: There is no such name.
        """
        self.entry(name) if name in self.names() else self._unknown(name)

        def note(tables: sqlite3.Connection, entry: Entry) -> None:
            covered = self.store.cover.name(name, self.id)
            tables.execute("DELETE FROM names WHERE session = ? AND name = ?", (self.id, covered))

        return self._mark(FORGET, lambda head: head, {"name": name}, note)

    def _unknown(self, name: str) -> None:
        raise InputError(f"session {self.name!r} has no checkpoint {name!r}", "See `kvcompress store log`")

    def rewind(self, at: int | str | None = None, *, turns: int | None = None) -> Entry:
        """Go back to an earlier state; the log keeps what came after it.

        Args:
            at: Name or number of an entry.
            turns: Or how many turns to go back; 0 means none.

        Raises:
            InputError: There is no such state, or neither or both are given.
        """
        if (at is None) == (turns is None):
            raise InputError("a rewind goes to an entry or back by turns", "Name one of them")
        if at is not None:
            target = self.entry(at)
            return self._mark(REWIND, lambda head: target, {"to": target.number})
        assert turns is not None
        return self._mark(REWIND, lambda head: self._back(head, turns), {"turns": turns})

    def pop(self) -> Entry | None:
        """Take the last turn away and return it; None where there is none. The log keeps it, with a tombstone."""
        with self.lock:
            top = self.peek()
            if top is not None:
                self._mark(POP, lambda head: self._back(head, 1), {"popped": top.number, "of": top.digest})
            return top

    def _back(self, head: Entry | None, turns: int) -> Entry | None:
        """Return the entry whose state is that of an entry without its last turns."""
        if turns < 0:
            raise InputError(f"{turns} turns cannot be gone back")
        if not turns:
            return head
        with self.store.database.read() as tables:
            rows = [] if head is None else path_rows(tables, head.id, TURNS, most=1, skip=turns - 1)
            if not rows:
                there = 0 if head is None else len(path_rows(tables, head.id, TURNS))
                raise InputError(f"session {self.name!r} has {there} turns, not {turns}", "See `kvcompress store log`")
            before = rows[0]["parent"]
            row = None if before is None else tables.execute("SELECT * FROM entries WHERE id = ?", (before,)).fetchone()
        return None if row is None else entry_of(row)

    def branch(self, name: str, at: int | str | None = None) -> StoredSession:
        """Make a session that goes on from a state of this one; nothing is copied.

        Args:
            name: Of the new session.
            at: Name or number of an entry; None for the present state.

        Raises:
            InputError: There is no such state, or the name is taken.
        """
        source = self.head if at is None else self.entry(at)
        if source is None:
            raise InputError(f"session {self.name!r} is empty", "Make the other one with create=True")
        said = {"of": self.name, "entry": source.number, "from": source.digest}
        with self.store.database.write() as tables:
            made = StoredSession(self.store, new_session(tables, name), name)
            origin = session_row(tables, self.id)["origin"]
            tables.execute("UPDATE sessions SET origin = ? WHERE id = ?", (origin, made.id))
            claim(tables, made)
            add(tables, made, NewEntry(BRANCH, source.id, source.end, source.end, said=said))
        return made

    def claim(self, tables: sqlite3.Connection) -> None:
        """Become the session's writer within a transaction, see `kvcompress.store.fence.claim`."""
        claim(tables, self)

    def _mark(
        self,
        kind: str,
        parent: Callable[[Entry | None], Entry | None],
        said: Mapping[str, Any],
        note: Callable[[sqlite3.Connection, Entry], None] = lambda tables, entry: None,
    ) -> Entry:
        """Add an entry without tokens."""
        with self.lock:
            require_writable(self)
            state = state_of_session(self)
            goes_on = parent(state.head)
            end = goes_on.end if goes_on is not None else 0
            with self.store.database.write() as tables:
                claim(tables, self, state.entries)
                parent_id = None if goes_on is None else goes_on.id
                entry = add(tables, self, NewEntry(kind, parent_id, end, end, said=said))
                note(tables, entry)
            return entry

    # -- the same without holding up an event loop

    async def append_async(self, snapshot: KVSnapshot, **options: Any) -> Entry:
        """See `append`."""
        return await asyncio.to_thread(self.append, snapshot, **options)

    async def checkpoint_async(self, name: str = "") -> Entry:
        """See `checkpoint`."""
        return await asyncio.to_thread(self.checkpoint, name)

    async def rewind_async(self, at: int | str | None = None, *, turns: int | None = None) -> Entry:
        """See `rewind`."""
        return await asyncio.to_thread(self.rewind, at, turns=turns)

    async def pop_async(self) -> Entry | None:
        """See `pop`."""
        return await asyncio.to_thread(self.pop)

    async def snapshot_async(self, at: int | str | None = None) -> KVSnapshot:
        """See `snapshot`."""
        return await asyncio.to_thread(self.snapshot, at)


def _require_name(name: str) -> None:
    if len(name) > LONGEST_NAME or not name.isprintable() or name != name.strip() or name.isdecimal():
        what = f"{name[:40]!r} cannot be the name of a checkpoint"
        raise InputError(what, f"Use up to {LONGEST_NAME} printable characters, not all digits")


__all__ = ["Diff", "StoredSession"]
