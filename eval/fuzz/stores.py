"""Stores: their databases changed as bytes and as rows, their segments, plain and encrypted."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from eval.fuzz.mutate import bytes_changed
from eval.fuzz.stand import KEY, Stand
from eval.fuzz.subject import Subject
from eval.fuzz.tables import rows_changed
from kvcompress.store.crypto import OBJECT_MARK

_HEAD = struct.Struct("<8sIIQ")


def store_subjects(directory: Path) -> list[Subject]:
    """Return the kinds of this module, whose stores are made in a directory."""
    plain, encrypted = Stand(directory / "plain"), Stand(directory / "encrypted", KEY)
    return [
        Subject("store bytes", lambda chance: bytes_changed(chance, plain.database), plain.read),
        Subject("store rows", lambda chance: rows_changed(chance, plain.database), plain.read),
        Subject("secret store bytes", lambda chance: bytes_changed(chance, encrypted.database), encrypted.read),
        Subject("secret store rows", lambda chance: rows_changed(chance, encrypted.database), encrypted.read),
        _segment("store segment", plain, bytes_changed),
        _segment("secret segment", encrypted, _encrypted_changed),
    ]


def _segment(name: str, stand: Stand, change: object) -> Subject:
    """Return the kind of a segment's file, of which nothing but what was written may be accepted."""
    path, *others = stand.files
    good, digest = stand.files[path], path.parent.name + path.name
    pieces = tuple(stand.files[other] for other in others)
    stand.restore()
    store = stand.open()

    def read(data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            store.part(digest)
        finally:
            path.write_bytes(good)

    changed = change if callable(change) else bytes_changed
    return Subject(name, lambda chance: changed(chance, good, pieces), read, (good,))


def _encrypted_changed(chance: Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    """Return an encrypted segment with another header, with pieces of another one, or changed as bytes."""
    if chance.random() < 0.5:
        return bytes_changed(chance, data, others)
    other = chance.choice(others)
    if chance.random() < 0.3:
        return data[: _HEAD.size] + other[_HEAD.size :]
    _, version, epoch, size = _HEAD.unpack_from(data)
    words = [version, epoch, size]
    place = chance.randrange(3)
    words[place] = chance.choice((0, 1, 2, words[place] + 1, words[place] - 1, 2**24, 2**32 - 1, 2**63)) % (
        2**64 if place == 2 else 2**32
    )
    return _HEAD.pack(OBJECT_MARK, *words) + data[_HEAD.size :] + bytes(chance.choice((0, 0, 1, 28)))
