"""Whether all that reading a session relies on is there, as it was written, and agrees with the entries of its log.

```
chain      see `verify_chain`: contexts, segments' digests and the columns that repeat them
tables     what the tables say beside: rows of segments, that they are held, names, the origin
files      each segment: digest, place, the one before, model, codec, and the tokens whose digest the entry states
```
Token ids alone are checked like any other segment: a turn that holds nothing else is told by them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvcompress.errors import FormatError, InputError, IntegrityError, KVCompressError
from kvcompress.format.container import HASH_CHARACTERS
from kvcompress.store.database import entry_id
from kvcompress.store.log import CHECKPOINT, FORGET, SEGMENT, TURNS, Stored, Verdict
from kvcompress.store.path import path_ids
from kvcompress.store.provenance import model_digest
from kvcompress.store.segment import PREFIX_BYTES, Part

if TYPE_CHECKING:
    from kvcompress.snapshot import ModelFingerprint
    from kvcompress.store.reading import SessionLog


NAME, ORIGIN = "name", "origin"
"""Kinds of verdicts beside those of a chain: a checkpoint's name, and what the session says of its model."""

_LOST = "{} has lost its segment, though a name or the session's end leads to it"


def verify_names(session: SessionLog, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Compare the names of checkpoints with those that a log, which a verdict found in order, gives and takes."""
    if not verdict.ok:
        return verdict
    wanted = dict[str, int]()
    for row in rows:
        name, kind = str(row.says.get("name", "")), row.columns[0]
        if name and kind == CHECKPOINT:
            wanted[name] = row.number
        elif kind == FORGET:
            wanted.pop(name, None)
    try:
        held = session.names()
    except IntegrityError as error:  # a value that an encrypted store's key never wrote
        return _bad(NAME, max(len(rows) - 1, 0), error.what, verdict)
    for name in sorted(wanted.keys() | held.keys()):
        given, found = wanted.get(name), held.get(name)
        if given != found:
            told = "the log takes it away" if given is None else f"the log gives it to entry {given}"
            leads = "is missing" if found is None else f"leads to entry {found}"
            bad = given if given is not None else found or 0
            return _bad(NAME, bad, f"the name {name!r} was changed: {told}, it {leads}", verdict)
    return verdict


def verify_origin(session: SessionLog, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Compare the model of a session's origin with the one that each entry with tokens names."""
    turns = [row for row in rows if row.columns[0] in TURNS and "model" in row.says]
    if not verdict.ok or not turns:
        return verdict
    with session.store.database.read() as tables:
        digest = tables.execute("SELECT origin FROM sessions WHERE id = ?", (session.id,)).fetchone()["origin"]
        span = (entry_id(session.id, 0), entry_id(session.id + 1, 0))
        held = tables.execute("SELECT 1 FROM entries WHERE id >= ? AND id < ? AND held = 1", span).fetchone()
    if digest is None:  # as a log that came without its segments has it
        return verdict if held is None else _bad(ORIGIN, turns[0].number, "the session's origin is missing", verdict)
    try:
        model = model_digest(session.store.origin(digest).fingerprint)
    except KVCompressError as error:
        return _bad(ORIGIN, turns[0].number, error.what, verdict)
    odd = next((row.number for row in turns if row.says["model"] != model), None)
    return verdict if odd is None else _bad(ORIGIN, odd, f"entry {odd} names another model than the origin", verdict)


def verify_tables(session: SessionLog, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Compare the rows of segments, which reading and collecting go by, with a log that a verdict found in order."""
    if not verdict.ok:
        return verdict
    with session.store.database.read() as tables:
        kept = _kept(tables, session.id, len(rows))
        uses, lost = _uses(tables), _lost(tables, session.id)
        for row in rows:
            if row.columns[0] not in TURNS or row.number not in kept:
                continue
            what = _told_otherwise(tables, row, uses) if row.number not in lost else _LOST
            if what:
                return _bad(SEGMENT, row.number, what.format(f"entry {row.number}"), verdict)
    return verdict


def _kept(tables: sqlite3.Connection, session: int, count: int) -> set[int]:
    """Return the numbers of the entries that the session's end or a name leads to: they hold their segments."""
    kept: set[int] = set()
    first = entry_id(session, 0)
    named = tables.execute("SELECT number FROM names WHERE session = ?", (session,)).fetchall()
    for number in {count - 1, *(row["number"] for row in named)} - {-1}:
        if number not in kept:
            kept.update(found - first for found in path_ids(tables, first + number))
    return kept


def _lost(tables: sqlite3.Connection, session: int) -> set[int]:
    """Return the numbers of the entries that hold their segments no more."""
    span = (entry_id(session, 0), entry_id(session + 1, 0))
    asked = "SELECT id FROM entries WHERE id >= ? AND id < ? AND segment IS NOT NULL AND held = 0"
    return {row["id"] - span[0] for row in tables.execute(asked, span)}


def _uses(tables: sqlite3.Connection) -> dict[bytes, int]:
    """Return how many entries and segments hold each segment."""
    asked = (
        "SELECT segment, SUM(held) FROM entries WHERE segment IS NOT NULL GROUP BY segment",
        "SELECT tokens, COUNT(*) FROM segments WHERE tokens IS NOT NULL GROUP BY tokens",
    )
    found: dict[bytes, int] = {}
    for one in asked:
        for digest, count in map(tuple, tables.execute(one)):
            found[bytes(digest)] = found.get(bytes(digest), 0) + count
    return found


def _told_otherwise(tables: sqlite3.Connection, row: Stored, uses: dict[bytes, int]) -> str:
    """Return in what the row of an entry's segment is not what the entry says; "" where it agrees."""
    found = tables.execute("SELECT * FROM segments WHERE digest = ?", (row.segment,)).fetchone()
    if found is None or not uses.get(row.segment):
        return _LOST
    told = bytes(found["parent"]).hex(), found["end"], bytes(found["prefix"]).hex()
    if told != (row.says.get("after"), row.columns[3], row.says.get("prefix")):
        return "what the tables say of the segment of {} was changed"
    stand_in = bytes(found["tokens"] or b"")
    if any(_missing(tables, digest, uses) for digest in (row.segment, stand_in) if digest):
        return "the segment of {} is held less often than it is used: it would be collected"
    return ""


def _missing(tables: sqlite3.Connection, digest: bytes, uses: dict[bytes, int]) -> bool:
    found = tables.execute("SELECT uses FROM segments WHERE digest = ?", (digest,)).fetchone()
    return found is None or found["uses"] < uses[digest]


def verify_segments(session: SessionLog, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Read the segments of the entries that a verdict found in order; return it, or one about the first bad segment.

    The digest of a segment stands in the chain; what had to make room has token ids in its place, which the chain knows
    by the digest of all ids up to there alone. What was collected once nothing led to it is not missed.
    """
    check = _Files(session)
    for row in rows[: verdict.entries]:
        if row.columns[0] not in TURNS or not check.is_held(row.segment):
            continue
        try:
            check.read(row)
        except KVCompressError as error:
            if check.is_held(row.segment):  # and was not collected meanwhile
                return _bad(SEGMENT, row.number, f"the segment of entry {row.number}: {error.what}", verdict)
    return verdict


class _Files:
    """Reads segments, each after the one before it."""

    def __init__(self, session: SessionLog) -> None:
        self.store, self._session = session.store, session
        self._ids: dict[str, Any] = {"": hashlib.blake2b(digest_size=PREFIX_BYTES, key=session.store.digest_key)}
        with session.store.database.read() as tables:
            row = tables.execute("SELECT origin FROM sessions WHERE id = ?", (session.id,)).fetchone()
        self._origin: str | None = row["origin"]
        self._model: ModelFingerprint | None = None

    def is_held(self, segment: bytes) -> bool:
        """Tell whether the store has a segment."""
        with self.store.database.read() as tables:
            return tables.execute("SELECT 1 FROM segments WHERE digest = ?", (segment,)).fetchone() is not None

    def read(self, row: Stored) -> None:
        """Read the segment of an entry; raises where it is not what the entry says."""
        says, part = row.says, self.store.part(row.segment.hex())
        if [part.start, part.end] != [row.columns[2], row.columns[3]]:
            raise FormatError("it holds the tokens of another place")
        if part.parent != says.get("after"):
            raise FormatError("it goes on from another segment")
        if not part.is_tokens_only and part.encoded.codec != says.get("codec"):
            raise FormatError("it is of another codec")
        self._require_model(part)
        hashed = self._before(part)
        if hashed is None:  # what it goes on from was collected
            return
        hashed.update(_bytes_of(part))
        if hashed.hexdigest() != says.get("prefix"):
            raise FormatError("it holds other tokens than the entry states")
        self._ids[row.segment.hex()] = hashed

    def _require_model(self, part: Part) -> None:
        """Refuse a segment whose model is not that of the session, which the gate at resume looks at."""
        if self._model is None:
            if self._origin is None:
                raise FormatError("the session has lost its origin")
            self._model = self.store.origin(self._origin).fingerprint
        for name, digest in asdict(self._model).items():
            if (digest or "")[:HASH_CHARACTERS] != (part.encoded.model.get(name) or ""):
                raise FormatError("it is of another model than the session")

    def _before(self, part: Part) -> Any:
        """Return the running digest of the ids before a segment; None where one of them is not there."""
        way: list[bytes] = []
        segment, start = part.parent, part.start
        while segment not in self._ids:
            try:
                before = self.store.part(segment)
            except InputError:
                return None
            if before.start >= start:  # it would go round for ever
                raise FormatError("it goes on from a later one")
            way.append(_bytes_of(before))
            segment, start = before.parent, before.start
        hashed = self._ids[segment].copy()
        for ids in reversed(way):
            hashed.update(ids)
        return hashed


def _bytes_of(part: Part) -> bytes:
    return bytes(part.token_ids.numpy().astype("<i8").tobytes())


def _bad(kind: str, number: int, what: str, verdict: Verdict) -> Verdict:
    return Verdict(number, kind, number, what, verdict.link)
