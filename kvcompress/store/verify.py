"""Whether every segment that a log points at is there, as it was written, and follows the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvcompress.errors import KVCompressError
from kvcompress.store.log import SEGMENT, TURNS, Stored, Verdict

if TYPE_CHECKING:
    from kvcompress.store.store import Store


def verify_segments(store: Store, rows: Sequence[Stored], verdict: Verdict) -> Verdict:
    """Read the segments of the entries that a verdict found in order; return it, or one about the first bad segment.

    What was collected once nothing led to it is not missed.
    """
    for row in rows[: verdict.entries]:
        if row.columns[0] not in TURNS:
            continue
        digest = row.segment.hex()
        with store.database.read() as tables:
            asked = "SELECT held FROM entries WHERE segment = ? AND held = 1"
            held = tables.execute(asked, (row.segment,)).fetchone()
        if held is None:
            continue
        try:
            part = store.part(digest)
        except KVCompressError as error:
            return _bad(row.number, f"the segment of entry {row.number}: {error.what}", verdict)
        if [part.start, part.end] != [row.columns[2], row.columns[3]]:
            what = f"the segment of entry {row.number} holds the tokens of another place"
            return _bad(row.number, what, verdict)
    return verdict


def _bad(number: int, what: str, verdict: Verdict) -> Verdict:
    return Verdict(number, SEGMENT, number, what, verdict.link)
