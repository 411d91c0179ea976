"""What logs from elsewhere must keep beside their chains, before any segment of theirs is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcompress.errors import FormatError, MismatchError
from kvcompress.format.origin import origin_of_json
from kvcompress.store.bundle import Log, Row
from kvcompress.store.log import CHECKPOINT, FORGET
from kvcompress.store.provenance import model_digest


def require_models(logs: Sequence[Log]) -> None:
    """Refuse a log whose origin, which no chain covers, is of another model than its entries name."""
    for log in logs:
        if log.origin is None:
            continue
        model = model_digest(origin_of_json(log.origin).fingerprint)
        for row in log.rows:
            stated = row.says.get("model", model)
            if row.is_turn and stated != model:
                what = f"the origin of {log.name or 'a removed session'!r}"
                raise MismatchError(what, str(stated)[:16], model[:16], "Do not use it")


def require_whole(logs: Sequence[Log], taken: Sequence[int]) -> None:
    """Refuse logs without a segment that the session's end or one of its names leads to.

    Args:
        logs: The session's own comes last.
        taken: How many entries of each are here already, with what they hold.
    """
    places = {
        row.link.digest.hex(): (log, number) for log, one in enumerate(logs) for number, row in enumerate(one.rows)
    }
    own = len(logs) - 1
    for number in {len(logs[own].rows) - 1, *names_of(logs[own]).values()} - {-1}:
        for log, at, row in _way(logs, places, own, number):
            if row.is_turn and not row.held and at >= taken[log]:
                what = f"the segment of entry {at} does not come along, though the session's end or a name leads to it"
                raise FormatError(what, "Export or push the session again")


def _way(
    logs: Sequence[Log], places: dict[str, tuple[int, int]], log: int, number: int
) -> Iterator[tuple[int, int, Row]]:
    """Yield the entries on the way back from one, each with its log and number; parents were found to be older."""
    while True:
        row = logs[log].rows[number]
        yield log, number, row
        parent = row.says["parent"]
        if parent is None:
            return
        log, number = places[parent] if isinstance(parent, str) else (log, parent)


def names_of(log: Log) -> dict[str, int]:
    """Return the names that a log gives and does not take away, and the numbers of their entries."""
    names = dict[str, int]()
    for number, row in enumerate(log.rows):
        name = row.says.get("name", "")
        if name and row.says["kind"] == CHECKPOINT:
            names[name] = number
        elif row.says["kind"] == FORGET:
            names.pop(name, None)
    return names
