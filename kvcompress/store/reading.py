"""What a session of a store tells: its log, its states, and what they hold."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcompress.errors import InputError, IntegrityError
from kvcompress.store.cover import raw_rows
from kvcompress.store.database import SESSION_SPAN, entry_id
from kvcompress.store.log import CHAIN, CHECKPOINT, TURNS, Entry, Link, Stored, Verdict, entry_of, verify_chain
from kvcompress.store.path import common_turns, path_rows

if TYPE_CHECKING:
    from torch import Tensor

    from kvcompress.hf.partial_prefill import Recompute
    from kvcompress.hf.types import CausalLM, Tokenizer
    from kvcompress.snapshot import KVSnapshot
    from kvcompress.store.identity import Compatibility
    from kvcompress.store.resume import Resumed
    from kvcompress.store.segment import Part
    from kvcompress.store.store import Store

BATCH = 1000


@dataclass(frozen=True, slots=True)
class Diff:
    """How two states differ.

    Attributes:
        shared_tokens: Tokens that both begin with.
        shared_turns: Turns whose segments are the same.
        here: Turns of this one alone.
        there: Turns of the other alone.
    """

    shared_tokens: int
    shared_turns: int
    here: tuple[Entry, ...]
    there: tuple[Entry, ...]


class SessionLog:
    """A session of a store, to be read.

    Args:
        store: Its store.
        session: Its id there.
        name: Its name.
    """

    def __init__(self, store: Store, session: int, name: str) -> None:
        self.store, self.id, self.name = store, session, name
        self.lock = store.lock_of(session)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.tokens:,} tokens)"

    # -- reading

    @property
    def head(self) -> Entry | None:
        """The newest entry, whose state is the session's; None where the log is empty."""
        count = len(self)
        return self.entry(count - 1) if count else None

    @property
    def tokens(self) -> int:
        """Tokens of the present state."""
        head = self.head
        return head.end if head else 0

    def __len__(self) -> int:
        with self.store.database.read() as tables:
            return int(tables.execute("SELECT entries FROM sessions WHERE id = ?", (self.id,)).fetchone()[0])

    def entry(self, at: int | str) -> Entry:
        """Return an entry by its number or by the name of a checkpoint.

        Raises:
            InputError: There is none.
            IntegrityError: The name leads to an entry that did not give it.
        """
        with self.store.database.read() as tables:
            number = self._number(tables, at)
            row = tables.execute("SELECT * FROM entries WHERE id = ?", (entry_id(self.id, number),)).fetchone()
        if row is None:
            raise InputError(f"session {self.name!r} has no entry {number}", "See `kvcompress store log`")
        found = entry_of(row)
        if isinstance(at, str) and not at.isdecimal() and (found.kind, found.name) != (CHECKPOINT, at):
            what = f"the name {at!r} was changed: it leads to an entry that never had it"
            raise IntegrityError(what, "See `kvcompress store log`")
        return found

    def _number(self, tables: sqlite3.Connection, at: int | str) -> int:
        asked = "SELECT number FROM names WHERE session = ? AND name = ?"
        if isinstance(at, str):
            row = tables.execute(asked, (self.id, self.store.cover.name(at, self.id))).fetchone()
            if row is None and not at.isdecimal():
                raise InputError(f"session {self.name!r} has no checkpoint {at!r}", "See `kvcompress store log`")
            at = int(at) if row is None else int(row["number"])
        if not 0 <= at < SESSION_SPAN:
            raise InputError(f"{at} is no number of an entry")
        return at

    def entries(self, *, newest_first: bool = False) -> Iterator[Entry]:
        """Yield the entries of the log as it is now; what is added meanwhile is left out.

        Args:
            newest_first: Begin at the end.
        """
        count = len(self)
        for first in range(0, count, BATCH):
            size = min(BATCH, count - first)
            start = count - first - size if newest_first else first
            yield from self._batch(start, size, newest_first)

    def _batch(self, start: int, size: int, newest_first: bool) -> list[Entry]:
        span = (entry_id(self.id, start), entry_id(self.id, start + size))
        order = "DESC" if newest_first else "ASC"
        with self.store.database.read() as tables:
            rows = tables.execute(f"SELECT * FROM entries WHERE id >= ? AND id < ? ORDER BY id {order}", span)
            return [entry_of(row) for row in rows]

    def __iter__(self) -> Iterator[Entry]:
        return self.entries()

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """Yield what `entries` does, in the same order, without holding up the event loop."""
        count = await asyncio.to_thread(len, self)
        for first in range(0, count, BATCH):
            for entry in await asyncio.to_thread(self._batch, first, min(BATCH, count - first), False):
                yield entry

    def names(self) -> dict[str, int]:
        """Return the names of checkpoints and the numbers of their entries."""
        with self.store.database.read() as tables:
            rows = tables.execute("SELECT number, name FROM names WHERE session = ?", (self.id,))
            return {name: number for number, name in sorted(map(tuple, rows))}

    def turns(self, at: int | str | None = None) -> list[Entry]:
        """Return the entries that add tokens on the way to a state, the first one first.

        Args:
            at: Name or number of an entry; None for the present state.
        """
        entry = self.head if at is None else self.entry(at)
        if entry is None:
            return []
        with self.store.database.read() as tables:
            rows = path_rows(tables, entry.id, TURNS)
        return [entry_of(row) for row in reversed(rows)]

    def token_ids(self, at: int | str | None = None) -> Tensor:
        """Return the token ids [N] int64 of a state, without its keys and values."""
        import torch

        found = [part.token_ids for part in self.parts(at)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def snapshot(
        self,
        at: int | str | None = None,
        *,
        model: CausalLM | None = None,
        tokenizer: Tokenizer | None = None,
        recompute: Recompute | None = None,
    ) -> KVSnapshot:
        """Return the cache of a state.

        Args:
            at: Name or number of an entry; None for the present state.
            model: Computes what is stored as token ids alone; None refuses that.
            tokenizer: Of the model.
            recompute: For files whose first layers the model recomputes.

        Raises:
            InputError: There is no such state, it holds no tokens, or a model is needed; `TrustError` where the
                store's policy does not accept it.
            FormatError: A segment was damaged; `IntegrityError` where its digest tells.
        """
        from kvcompress.store.assembly import assemble
        from kvcompress.store.resume import grower

        grow = None if model is None else grower(model, tokenizer)
        return assemble(self.parts(at), self.store.codecs, recompute, grow)

    def parts(self, at: int | str | None) -> Iterable[Part]:
        """Return the segments of a state, if all of them are trusted."""
        entry = self.head if at is None else self.entry(at)
        if self.store.policy is not None and entry is not None:
            return self.store.policy.require(self, entry)
        return (self.store.part(turn.segment) for turn in self.turns(at))

    def resume(
        self,
        model: CausalLM,
        tokenizer: Tokenizer | None = None,
        at: int | str | None = None,
        *,
        check: bool = True,
        other_weights: bool = False,
    ) -> Resumed:
        """Return a state as a cache that the model goes on from.

        Args:
            model: The model that recorded it, in evaluation mode.
            tokenizer: Compared with the recording one where both are known.
            at: Name or number of an entry; None for the present state.
            check: Refuse any other model, before anything is decoded.
            other_weights: Take other weights of the same architecture, such as a fine-tune, and measure what they
                cost; the model reads the session once for that.

        Raises:
            MismatchError: The model or the tokenizer is another one.
            InputError: As `snapshot`.
        """
        from kvcompress.store.resume import resumed

        found = self.compatibility(model, tokenizer, other_weights=other_weights) if check else None
        if found is not None:
            found.require()
        snapshot = self.snapshot(at, model=model, tokenizer=tokenizer)
        made = resumed(snapshot, model, tokenizer, check=check, other_weights=other_weights)
        self._note_use()
        return made

    def compatibility(
        self, model: CausalLM, tokenizer: Tokenizer | None = None, *, other_weights: bool = False
    ) -> Compatibility | None:
        """Return how a model compares with the one that recorded the session, None where none has yet."""
        from kvcompress.store.identity import Identity, compare

        with self.store.database.read() as tables:
            row = tables.execute("SELECT origin FROM sessions WHERE id = ?", (self.id,)).fetchone()
        if not row["origin"]:
            return None
        recorded = Identity.of_origin(self.store.origin(row["origin"]))
        return compare(recorded, Identity.of_model(model, tokenizer, recorded), other_weights=other_weights)

    def _note_use(self) -> None:
        now = time.time()
        with self.store.database.read() as tables:
            used = tables.execute("SELECT used FROM sessions WHERE id = ?", (self.id,)).fetchone()["used"]
        if now - used > 60:  # who resumes often need not write as often
            with self.store.database.write() as tables:
                tables.execute("UPDATE sessions SET used = ? WHERE id = ?", (now, self.id))

    def peek(self) -> Entry | None:
        """Return the last turn of the present state without reading its keys and values; None where there is none."""
        head = self.head
        if head is None:
            return None
        with self.store.database.read() as tables:
            rows = path_rows(tables, head.id, TURNS, most=1)
        return entry_of(rows[0]) if rows else None

    def diff(self, other: SessionLog, at: int | str | None = None, other_at: int | str | None = None) -> Diff:
        """Return how a state differs from one of another session, or of the same."""
        here, there = self.turns(at), other.turns(other_at)
        shared = common_turns(here, there)
        tokens = here[shared - 1].end if shared else 0
        ours, theirs = here[shared:], there[shared:]
        return Diff(tokens + _alike(self.store, ours, other.store, theirs), shared, tuple(ours), tuple(theirs))

    def verify(self, *, segments: bool = True) -> Verdict:
        """Follow the chain of anchors and name the first entry that is not as it was written.

        Names of checkpoints must lead where the log says, and the origin be of the model that the entries name.

        Args:
            segments: Also read every segment, and compare the rows that lead to them.
        """
        from kvcompress.store.verify import verify_names, verify_origin, verify_segments, verify_tables

        held, count, last = self.stored_rows()
        verdict = verify_chain(held, count, last)
        verdict = verify_origin(self, held, verify_names(self, held, verdict))
        return verify_tables(self, held, verify_segments(self, held, verdict)) if segments else verdict

    def stored_rows(self) -> tuple[list[Stored], int, Link]:
        """Return the entries as they lie there, nothing of them believed, how many there should be, and the end."""
        with self.store.database.read() as tables:
            row = tables.execute("SELECT entries, anchor, digest FROM sessions WHERE id = ?", (self.id,)).fetchone()
            span = (entry_id(self.id, 0), entry_id(self.id + 1, 0))
            held = [Stored.of(found, self.store.cover) for found in raw_rows(tables, CHAIN, span)]
        return held, row["entries"], Link(bytes(row["anchor"]), bytes(row["digest"]))


def _alike(ours: Store, here: Sequence[Entry], theirs: Store, there: Sequence[Entry]) -> int:
    """Return how many tokens two rows of turns begin with alike."""
    import torch

    first, second = (
        torch.cat([store.part(turn.segment).token_ids for turn in turns] or [torch.empty(0, dtype=torch.int64)])
        for store, turns in ((ours, here), (theirs, there))
    )
    least = min(len(first), len(second))
    differ = torch.nonzero(first[:least] != second[:least])
    return int(differ[0, 0]) if len(differ) else least
