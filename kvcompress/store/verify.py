"""What the chain of a log vouches for and does not hold itself: segments, what stands for them, names, the origin."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvcompress.errors import KVCompressError
from kvcompress.store.columns import session_row
from kvcompress.store.log import CHECKPOINT, FORGET, SEGMENT, TURNS, Stored, Verdict
from kvcompress.store.provenance import model_digest
from kvcompress.store.segment import PREFIX_BYTES, Part

if TYPE_CHECKING:
    from kvcompress.store.reading import SessionLog
    from kvcompress.store.store import Store

NAME, ORIGIN = "name", "origin"
"""Kinds of verdicts beside those of a chain: a checkpoint's name, and what the session says of its model."""


def verify_names(session: SessionLog, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Compare the names of checkpoints with those that a log, which a verdict found in order, gives and takes."""
    wanted = dict[str, int]()
    for row in rows if verdict.ok else ():
        name, kind = str(row.says.get("name", "")), row.columns[0]
        if name and kind == CHECKPOINT:
            wanted[name] = row.number
        elif kind == FORGET:
            wanted.pop(name, None)
    held = session.names() if verdict.ok else {}
    for name in sorted(wanted.keys() | held.keys()):
        given, found = wanted.get(name), held.get(name)
        if given != found:
            told = "the log takes it away" if given is None else f"the log gives it to entry {given}"
            leads = "is missing" if found is None else f"leads to entry {found}"
            bad = given if given is not None else found or 0
            return Verdict(
                verdict.entries, NAME, bad, f"the name {name!r} was changed: {told}, it {leads}", verdict.link
            )
    return verdict


def verify_origin(session: SessionLog, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Compare the model of a session's origin with the one that each entry with tokens names."""
    turns = [row for row in rows[: verdict.entries] if row.columns[0] in TURNS and "model" in row.says]
    if not verdict.ok or not turns:
        return verdict
    with session.store.database.read() as tables:
        digest = session_row(tables, session.id)["origin"]
        span = (session.id << 32, (session.id + 1) << 32)
        held = tables.execute("SELECT 1 FROM entries WHERE id >= ? AND id < ? AND held = 1", span).fetchone()
    if digest is None:  # as a log that came without its segments has it
        return verdict if held is None else _origin("the session's origin is missing", turns[0], verdict)
    try:
        model = model_digest(session.store.origin(digest).fingerprint)
    except KVCompressError as error:
        return _origin(error.what, turns[0], verdict)
    odd = next((row for row in turns if row.says["model"] != model), None)
    return verdict if odd is None else _origin("the session's origin is of another model", odd, verdict)


def _origin(what: str, row: Stored, verdict: Verdict) -> Verdict:
    return Verdict(verdict.entries, ORIGIN, row.number, f"{what}: entry {row.number} names its model", verdict.link)


def verify_segments(store: Store, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Read the segments of the entries that a verdict found in order; return it, or one about the first bad segment.

    What was collected once nothing led to it is not missed. The digest of a segment stands in the chain; what had to
    make room has token ids in its place, which the chain knows by the digest of all ids up to there alone.
    """
    read = _Read(store)
    for row in rows[: verdict.entries]:
        if row.columns[0] not in TURNS:
            continue
        with store.database.read() as tables:
            asked = "SELECT held FROM entries WHERE segment = ? AND held = 1"
            held = tables.execute(asked, (row.segment,)).fetchone()
        if held is None:
            continue
        try:
            part = store.part(row.segment.hex())
            after = row.says.get("after", part.parent)
            same = part.parent == after and read.prefix(row.segment.hex(), part) == row.says.get("prefix")
        except KVCompressError as error:
            return _bad(row.number, f"the segment of entry {row.number}: {error.what}", verdict)
        if [part.start, part.end] != [row.columns[2], row.columns[3]]:
            what = f"the segment of entry {row.number} holds the tokens of another place"
            return _bad(row.number, what, verdict)
        if not same and "prefix" in row.says:
            return _bad(
                row.number, f"the segment of entry {row.number} holds other tokens than the entry says", verdict
            )
    return verdict


class _Read:
    """Running digests of the token ids up to the end of each segment that was read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hashed: dict[str, Any] = {"": hashlib.blake2b(digest_size=PREFIX_BYTES, key=store.digest_key)}

    def prefix(self, segment: str, part: Part) -> str:
        """Return the digest of all ids up to the end of a segment; those before it are read where they were not."""
        way = [(segment, part)]
        while way[-1][1].parent not in self.hashed:
            before = way[-1][1].parent
            way.append((before, self.store.part(before)))
            if way[-1][1].start >= way[-2][1].start:  # it would go round for ever
                return ""
        for name, one in reversed(way):
            hashed = self.hashed[one.parent].copy()
            hashed.update(one.token_ids.numpy().astype("<i8").tobytes())
            self.hashed[name] = hashed
        return str(self.hashed[segment].hexdigest())


def _bad(number: int, what: str, verdict: Verdict) -> Verdict:
    return Verdict(number, SEGMENT, number, what, verdict.link)
