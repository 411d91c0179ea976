"""Sessions outside of a store: the portable file, and what lies at a place that stores are synchronised with."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from eval.fuzz.mutate import bytes_changed, json_text
from eval.fuzz.stand import KEY, Reading, Stand, read_all, the_same_each_time
from eval.fuzz.subject import Accepted, Subject
from kvcompress.errors import KVCompressError
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.log import Link
from kvcompress.store.objects import content_digest
from kvcompress.store.pieces import MOST_PIECE_BYTES
from kvcompress.store.portable import HEAD, LOGS, export_session, import_session
from kvcompress.store.store import Store
from kvcompress.store.sync import PULL, PUSH, sync

SESSION = "third"
"""It branched from another one, so two logs come along."""

Members = dict[str, bytes]
_HEAD = f"{HEAD}.json"


def export_subjects(directory: Path) -> list[Subject]:
    """Return the kinds of this module."""
    source = Stand(directory / "source")
    empty = Stand(directory / "empty", make=lambda store: None, names=())
    path, place = directory / "case.kvs", directory / "place"
    with source.open() as store:
        export_session(store.session(SESSION), path, force=True)
        sync(store, str(place), [SESSION], direction=PUSH, workers=1)
    good, wanted = path.read_bytes(), {name: told for name, told in source.good.items() if name.startswith(SESSION)}

    def read(data: bytes, blind: bool) -> None:
        path.write_bytes(data)
        _into(empty, wanted if blind else None, lambda store: import_session(store, path))

    return [
        Subject("export bytes", lambda chance: bytes_changed(chance, good), lambda data: read(data, True), (good,)),
        Subject("export", lambda chance: _export_changed(chance, good), lambda data: read(data, False)),
        _secret(directory),
        _remote(place, empty, wanted),
    ]


def _secret(directory: Path) -> Subject:
    """Return the kind of a portable file of an encrypted store, for an empty one under the same key."""
    source = Stand(directory / "secret-source", KEY)
    empty = Stand(directory / "secret-empty", KEY, make=lambda store: None, names=())
    path = directory / "case-secret.kvs"
    with the_same_each_time(), source.open() as store:
        export_session(store.session(SESSION), path, force=True)
    good, wanted = path.read_bytes(), {name: told for name, told in source.good.items() if name.startswith(SESSION)}

    def read(data: bytes) -> None:
        path.write_bytes(data)
        _into(empty, wanted, lambda store: import_session(store, path))

    return Subject("secret export", lambda chance: bytes_changed(chance, good), read, (good,))


def _into(empty: Stand, wanted: Reading | None, take: Callable[[Store], object]) -> None:
    """Take a session into an empty store.

    Where it is taken, all that was taken must be in order; with `wanted` it must also be what was sent.
    """
    empty.restore()
    with empty.open() as store:
        take(store)
        found = read_all(store, ())
    for part, told in found.items():
        if isinstance(told, KVCompressError) and (wanted is not None or part.endswith(("/verify", "/log"))):
            raise Accepted(f"{part} of what was taken in: {told}")
    for part, told in (wanted or {}).items():
        if found.get(part) != told:
            raise Accepted(f"{part} was changed on its way and accepted")


# -- the portable file


def _export_changed(chance: Random, good: bytes) -> bytes:
    """Return a file whose members were changed, named by their new digests where that is what somebody would do."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    kind = chance.randrange(8)
    if kind == 0:
        members[_HEAD] = json_text(chance, json.loads(members[_HEAD]))
    elif kind < 5:
        _log_changed(chance, members, sound=kind > 1)
    elif kind == 5:
        one, other = chance.choice(sorted(members)), chance.choice(sorted(members))
        members[one], members[other] = members[other], members[one]
    elif kind == 6:
        members.pop(chance.choice(sorted(members)))
    else:
        name = chance.choice((f"segments/{'0' * 64}", "other", "../../a", "head.json/", "logs/\x1b", ""))
        members[name] = chance.choice(sorted(members.values()))
    return _zipped(chance, members)


def _zipped(chance: Random, members: Members) -> bytes:
    found = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(found, "w", how) as archive:
        for name, data in members.items():
            with suppress(UnicodeError, ValueError):
                member = zipfile.ZipInfo(name)
                member.compress_type, member.create_system, member.external_attr = how, 3, 0o600 << 16
                archive.writestr(member, data)
    return found.getvalue()


def _log_changed(chance: Random, members: Members, *, sound: bool) -> None:
    """Change an entry of a log; `sound` lets chain, names of pieces and head agree with it, as a forger would."""
    head = json.loads(members[_HEAD])
    log = chance.choice(head["logs"])
    digest = log["pieces"][0][0]
    piece = json.loads(members.pop(LOGS + digest))
    entry = chance.choice(piece["entries"])
    place = chance.choice((0, 1, 1, 1, 1, 4))
    if place == 1:
        entry[1] = json_text(chance, json.loads(entry[1])).decode(errors="replace")
        if sound:
            entry[1] = _canonical(entry[1])
    else:
        entry[place] = chance.choice(("", "0" * 64, chance.choice(piece["entries"])[place], "x", "\x1b"))
    if sound:
        _chain(piece["entries"])
    data = canonical_json(piece)[:MOST_PIECE_BYTES] if _storable(piece) else json.dumps(piece).encode()
    last = piece["entries"][-1][3]
    log["pieces"][0], log["digest"] = [content_digest(data), last], last
    members[LOGS + content_digest(data)] = data
    members[_HEAD] = json.dumps(head).encode()


def _storable(value: Any) -> bool:
    try:
        canonical_json(value)
    except KVCompressError:
        return False
    return True


def _canonical(text: str) -> str:
    try:
        return canonical_json(json.loads(text)).decode()
    except (ValueError, RecursionError, KVCompressError):
        return text


def _chain(entries: list[list[str]]) -> None:
    """Write anchors and digests anew."""
    link = Link()
    for entry in entries:
        with suppress(ValueError):
            link = link.then(bytes.fromhex(entry[0]), entry[1].encode(errors="surrogatepass"))
        entry[2], entry[3] = link.anchor.hex(), link.digest.hex()


# -- a place


def _remote(place: Path, empty: Stand, wanted: Reading) -> Subject:
    """Return the kind of one of the files at a place; a case begins with the number of the file."""
    files = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    paths = list(files)

    def change(chance: Random) -> bytes:
        number = chance.randrange(len(paths))
        data = files[paths[number]]
        if paths[number].suffix == ".json" and chance.random() < 0.8:
            return bytes([number]) + json_text(chance, json.loads(data))
        return bytes([number]) + bytes_changed(chance, data, tuple(files.values()))

    def read(case: bytes) -> None:
        path = paths[case[0] % len(paths)] if case else paths[0]
        path.write_bytes(case[1:])
        try:
            _into(empty, _told(wanted), lambda store: sync(store, str(place), [SESSION], direction=PULL, workers=1))
        finally:
            path.write_bytes(files[path])

    return Subject("remote place", change, read)


def _told(wanted: Reading) -> Reading:
    """Return what of a session nothing at a place may change; the rest of its origin is a label that no chain has."""
    return {part: told for part, told in wanted.items() if not part.endswith("/origin")}
