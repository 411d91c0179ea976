"""Logs cut into pieces, and heads that lead to them: written for other stores, and read as what anybody may have sent.

Nothing is believed before the chain, the parents and the kinds of entries agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from kvcompress.errors import FormatError
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.json_section import MAX_TOKENS
from kvcompress.format.strict_json import canonical_json, parse_json
from kvcompress.store.bundle import Head, Log, LogHead, Row, Source
from kvcompress.store.log import BRANCH, CHECKPOINT, FORGET, POP, REWIND, TURNS, Link
from kvcompress.store.objects import content_digest

FORMAT, VERSION = "kvcompress.session", 1
PIECE_ENTRIES = 256
MOST_PIECE_BYTES, MOST_HEAD_BYTES = 8 << 20, 8 << 20
MOST_ENTRIES, MOST_LOGS = 1 << 22, 1 << 10
KINDS = (*TURNS, CHECKPOINT, REWIND, POP, BRANCH, FORGET)
DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{32}")
_ENTRY = ("segment", "context", "anchor", "digest", "held")


def pieces_of(log: Log, first: int = 0, key: bytes = b"") -> Iterator[tuple[str, str, bytes]]:
    """Yield digest, digest of the last entry and content of the pieces of a log from the piece `first` on.

    Args:
        log: The log.
        first: The first piece.
        key: Of the digests; empty where nothing is encrypted.
    """
    for start in range(first * PIECE_ENTRIES, len(log.rows), PIECE_ENTRIES):
        rows = log.rows[start : start + PIECE_ENTRIES]
        entries = [
            [row.segment, row.context.decode(), row.link.anchor.hex(), row.link.digest.hex(), row.held] for row in rows
        ]
        data = canonical_json({"first": start, "entries": entries})
        yield content_digest(data, key), rows[-1].link.digest.hex(), data


def head_of(log: Log, pieces: Sequence[tuple[str, str]]) -> LogHead:
    """Return what a head says of a log."""
    return LogHead(log.name, log.created, log.origin, len(log.rows), log.digest, tuple(pieces))


def pack_head(head: Head) -> bytes:
    """Return a head as canonical JSON."""
    logs = [
        {
            "name": log.name,
            "created": log.created,
            "origin": log.origin,
            "entries": log.entries,
            "digest": log.digest,
            "pieces": [list(piece) for piece in log.pieces],
        }
        for log in head.logs
    ]
    said = {"format": FORMAT, "version": VERSION, "session": head.session, "sequence": head.sequence, "logs": logs}
    return canonical_json(said)


def read_head(data: bytes) -> Head:
    """Read a head.

    Raises:
        FormatError: It is none, or contradicts itself.
    """
    if len(data) > MOST_HEAD_BYTES:
        raise FormatError(f"the head of a session has {len(data)} bytes, more than {MOST_HEAD_BYTES}")
    what = "the head of a session:"
    fields = JsonFields(parse_json(data, "the head of a session"), what)
    if fields.value("format") != FORMAT:
        raise FormatError("the file is no exported session", "Name one that `kvcompress store export` wrote")
    if fields.value("version") != VERSION:
        raise FormatError(f"the exported session has version {fields.value('version')!r}", "Upgrade kvcompress")
    logs = fields.value("logs")
    if not isinstance(logs, list) or not 0 < len(logs) <= MOST_LOGS:
        raise fields.bad("logs", f"a list of 1 to {MOST_LOGS} logs")
    return Head(fields.text("session"), fields.integer("sequence"), tuple(_log_head(log) for log in logs))


def _log_head(value: object) -> LogHead:
    fields = JsonFields(value, "a log of the head:", ("name", "created", "origin", "entries", "digest", "pieces"))
    entries, pieces = fields.integer("entries", MOST_ENTRIES), fields.value("pieces")
    if not isinstance(pieces, list) or len(pieces) != -(-entries // PIECE_ENTRIES):
        raise fields.bad("pieces", f"the list of pieces of {entries} entries")
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_digest, pair)) for pair in pieces):
        raise fields.bad("pieces", "a list of pairs of digests")
    origin, digest, name = fields.value("origin"), fields.value("digest"), fields.value("name")
    if origin is not None and not isinstance(origin, Mapping):
        raise fields.bad("origin", "an object or null")
    if digest != (pieces[-1][1] if pieces else Link().digest.hex()):
        raise fields.bad("digest", "that of the last entry")
    named = fields.text("name") if name else ""
    return LogHead(named, fields.number("created", 0), origin, entries, digest, tuple((a, b) for a, b in pieces))


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def read_logs(source: Source, head: Head, known: Callable[[int], Log | None] = lambda place: None) -> tuple[Log, ...]:
    """Return the logs that a head names, each chained from its first entry on, and sound.

    Args:
        source: Where the pieces are.
        head: The head.
        known: What is there already of a log, by its place; equal pieces are not fetched.

    Raises:
        FormatError: Something was changed, or contradicts itself.
    """
    logs = []
    for place, log in enumerate(head.logs):
        here = known(place)
        rows: list[Row] = []
        for index, (digest, last) in enumerate(log.pieces):
            start, end = index * PIECE_ENTRIES, min((index + 1) * PIECE_ENTRIES, log.entries)
            if here is not None and len(here.rows) >= end and here.rows[end - 1].link.digest.hex() == last:
                rows += [replace(row, held="") for row in here.rows[start:end]]
                continue
            rows += read_piece(source.piece(digest), digest, start, end - start, source.digest_key)
        found = Log(log.name, log.created, log.origin, tuple(rows))
        if found.digest != log.digest:
            raise FormatError(f"the log of {log.name or 'a removed session'!r} does not end as its head says")
        logs.append(found)
    require_sound(logs)
    return tuple(logs)


def read_piece(data: bytes, digest: str, first: int, count: int, key: bytes = b"") -> list[Row]:
    """Read the piece of a log that holds `count` entries from `first` on; raises `FormatError` where it is none."""
    if content_digest(data, key) != digest:
        raise FormatError(f"the piece {digest[:16]} of a log was changed", "Fetch it again, or from a copy")
    fields = JsonFields(parse_json(data, "a piece of a log"), "a piece of a log:", ("first", "entries"))
    entries = fields.value("entries")
    if fields.integer("first") != first or not isinstance(entries, list) or len(entries) != count:
        raise FormatError(f"a piece of a log does not hold the entries {first} to {first + count - 1}")
    return [_entry(entry, first + index) for index, entry in enumerate(entries)]


def _entry(value: object, number: int) -> Row:
    if not isinstance(value, list) or len(value) != len(_ENTRY) or not all(isinstance(one, str) for one in value):
        raise FormatError(f"entry {number} of a log is not what an entry is")
    segment, context, anchor, digest, held = value
    if not re.fullmatch(r"[0-9a-f]{16}", anchor) or not _is_digest(digest):
        raise FormatError(f"entry {number} of a log has no anchor")
    if any(one and not _is_digest(one) for one in (segment, held)) or (held and not segment):
        raise FormatError(f"entry {number} of a log names an impossible segment")
    says = parse_json(context.encode(errors="surrogatepass"), f"the context of entry {number}")
    if not isinstance(says, dict) or canonical_json(says) != context.encode():
        raise FormatError(f"the context of entry {number} is not in its one way of writing")
    return Row(segment, context.encode(), says, Link(bytes.fromhex(anchor), bytes.fromhex(digest)), held)


def require_sound(logs: Sequence[Log]) -> None:
    """Follow the chains, and what each entry says of the one that it goes on from.

    Raises:
        FormatError: An entry was changed, or contradicts the others.
    """
    ends: dict[str, int] = {}
    for log in logs:
        link, own = Link(), list[Row]()
        for number, row in enumerate(log.rows):
            link = link.then(bytes.fromhex(row.segment), row.context)
            if link != row.link:
                raise FormatError(f"entry {number} of a log was changed: it does not continue the chain")
            _require_place(row, number, own, ends)
            ends[row.link.digest.hex()] = row.span[1]
            own.append(row)


def _require_place(row: Row, number: int, own: Sequence[Row], ends: Mapping[str, int]) -> None:
    """Refuse an entry whose context is none of an entry at its place."""
    says = row.says
    kind, parent, tokens = says.get("kind"), says.get("parent"), says.get("tokens")
    wrong = FormatError(f"entry {number} of a log contradicts itself or those before it")
    if says.get("number") != number or type(says.get("number")) is not int or kind not in KINDS:
        raise wrong
    if not isinstance(tokens, list) or len(tokens) != 2 or any(type(one) is not int for one in tokens):
        raise wrong
    if not 0 <= tokens[0] <= tokens[1] <= MAX_TOKENS:
        raise wrong
    if isinstance(parent, str):
        before = ends.get(parent)
    elif parent is None:
        before = 0
    else:
        before = own[parent].span[1] if type(parent) is int and 0 <= parent < number else None
    turn = kind in TURNS
    if before != tokens[0] or turn != bool(row.segment) or not (turn or tokens[0] == tokens[1]):
        raise wrong
    prefix, name = says.get("prefix"), says.get("name", "")
    if turn and not (isinstance(prefix, str) and _PREFIX.fullmatch(prefix)):
        raise wrong
    if not isinstance(name, str) or not (name.isprintable() and len(name) <= 200):
        raise wrong
