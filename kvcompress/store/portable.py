"""One file with all of a session: a zip whose members are stored as they are.

```
keyring.json      of an encrypted store alone; then the others are encrypted, see `envelope`
head.json         see `bundle`; head.bin where it is encrypted
logs/<digest>     pieces of the logs
segments/<digest>
```
The file may come from anybody. Members are read only where they lie apart from each other within the file, have the
size that they state, and no name that is not one of these; nothing is ever unpacked to the disk by its name.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kvcompress.errors import FormatError, InputError, about, first_line
from kvcompress.format.atomic import atomic_path, open_regular
from kvcompress.format.limits import require_memory
from kvcompress.store.bundle import Head, Source, gather
from kvcompress.store.envelope import KEYRING, MOST_KEYRING_BYTES, PLAIN, Envelope, leaving, unlocked
from kvcompress.store.keyring import join, user_key
from kvcompress.store.objects import MOST_SEGMENT_BYTES, checked
from kvcompress.store.pieces import MOST_HEAD_BYTES, MOST_PIECE_BYTES, head_of, pack_head, pieces_of, read_head

if TYPE_CHECKING:
    from kvcompress.store.adopt import Adopted
    from kvcompress.store.keys import StoreKey
    from kvcompress.store.session import StoredSession
    from kvcompress.store.store import Store

HEAD, LOGS, SEGMENTS = "head", "logs/", "segments/"
MEMBER_BYTES = 1 << 10
"""What an entry of a zip's directory takes in memory, at most about."""

_NAME = re.compile(r"head\.(?:json|bin)|keyring\.json|(?:logs|segments)/[0-9a-f]{64}")
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER_BYTES = 30
_DIRECTORY_ENTRY_BYTES = 46
_FAILURES = (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, struct.error, KeyError)


def export_session(session: StoredSession, path: str | Path, *, force: bool = False) -> int:
    """Write a session into one file, with those parts of other sessions that it branched from; return its bytes.

    The file appears whole or not at all. That of an encrypted store is encrypted and opens with the store's key.

    Args:
        session: The session.
        path: The file.
        force: Replace an existing one.

    Raises:
        InputError: The session is empty, or the file cannot be written.
        IntegrityError: A segment was changed.
    """
    logs, store = gather(session), session.store
    if not logs[-1].rows:
        raise InputError(f"session {session.name!r} is empty", "Append to it first")
    envelope, keyring = leaving(store)
    heads, pieces = [], dict[str, bytes]()
    for log in logs:
        found = list(pieces_of(log, key=store.digest_key))
        heads.append(head_of(log, [(digest, last) for digest, last, _ in found]))
        pieces |= {digest: data for digest, _, data in found}
    held = {row.held: None for log in logs for row in log.rows if row.held}
    with atomic_path(path, force=force) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        if keyring:
            archive.writestr(_member(KEYRING), keyring)
        head = HEAD + envelope.suffix
        archive.writestr(_member(head), envelope.wrapped(head, pack_head(Head(session.name, 0, tuple(heads)))))
        for digest, data in pieces.items():
            archive.writestr(_member(LOGS + digest), envelope.wrapped(digest, data))
        for digest in held:
            data = checked(store.objects, digest, key=store.digest_key)
            archive.writestr(_member(SEGMENTS + digest), envelope.wrapped(digest, data))
    return Path(path).stat().st_size


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member that says nothing of when and where it was written: equal plain sessions give equal files."""
    found = zipfile.ZipInfo(name)
    found.external_attr = 0o600 << 16
    return found


def import_session(
    store: Store,
    path: str | Path,
    name: str | None = None,
    *,
    key: StoreKey | None = None,
    readable: bool = False,
) -> Adopted:
    """Take a session out of a file into a store.

    Where both make digests alike, as two plain stores do, and an empty encrypted store with those of its own key, the
    log comes over bit by bit. Otherwise it is told anew in the digests of the store, see `kvcompress.store.translate`.

    Args:
        store: The store.
        path: The file.
        name: What to call it here; None keeps its name.
        key: Of an encrypted file, where it is another one than that of the store.
        readable: Take an encrypted session into a plain store, where everybody can read it.

    Raises:
        FormatError: The file is damaged, was tampered with, or is no exported session.
        InputError: It cannot be read, or the session here went on differently; `WrongKeyError` where its key is
            another one.
    """
    from kvcompress.store.adopt import adopt

    own = user_key(store) if key is None and store.digest_key else None
    with about(path), opened(path, key or own) as archive:
        source: Source = archive
        head = archive.head()
        if archive.digest_key and not store.digest_key and not readable:
            what = "the file is encrypted, and this store would hold its session readable"
            raise InputError(what, "Import it into an encrypted store, or allow that with --readable")
        joins = own is not None and bool(archive.digest_key) and join(store, archive.digest_key)
        if archive.digest_key != store.digest_key and not joins:
            from kvcompress.store.translate import translated

            source, head = translated(archive, head, store.digest_key)
        return adopt(store, source, head, name)


class Archive:
    """The members of a file that has been looked at; what it gives is readable.

    Args:
        archive: The zip.
        sizes: Of its members, by name.
        key: Opens an encrypted one.
    """

    def __init__(self, archive: zipfile.ZipFile, sizes: dict[str, int], key: StoreKey | None = None) -> None:
        self._archive, self._sizes = archive, sizes
        self._envelope: Envelope = PLAIN
        if KEYRING in sizes:
            self._envelope = unlocked(self._content(KEYRING, MOST_KEYRING_BYTES), key, "the file")

    @property
    def digest_key(self) -> bytes:
        """See `Source`."""
        return self._envelope.digest_key

    def head(self) -> Head:
        """Return what leads to the others."""
        name = HEAD + self._envelope.suffix
        head = read_head(self._opened(name, name, MOST_HEAD_BYTES))
        named = {name, *({KEYRING} & self._sizes.keys())}
        named |= {LOGS + digest for log in head.logs for digest, _ in log.pieces}
        odd = [name for name in self._sizes if name not in named and not name.startswith(SEGMENTS)]
        if odd:
            raise FormatError(f"the file holds {odd[0]!r}, which nothing leads to")
        return head

    def piece(self, digest: str) -> bytes:
        """See `Source`."""
        return self._opened(LOGS + digest, digest, MOST_PIECE_BYTES)

    def segment(self, digest: str) -> bytes:
        """See `Source`."""
        return self._opened(SEGMENTS + digest, digest, MOST_SEGMENT_BYTES)

    def _opened(self, member: str, name: str, most_bytes: int) -> bytes:
        return self._envelope.opened(name, self._content(member, self._envelope.size_bytes(most_bytes)))

    def _content(self, name: str, most_bytes: int) -> bytes:
        size = self._sizes.get(name)
        if size is None:
            raise FormatError(f"the file lacks {name!r}", "Export the session again")
        if size > most_bytes:
            raise FormatError(f"{name!r} has {size} bytes, more than {most_bytes}")
        require_memory(size, f"reading {name!r}")
        with _translated(), self._archive.open(name) as member:
            data = member.read(size + 1)
        if len(data) != size:
            raise FormatError(f"{name!r} has {len(data)} bytes, not the {size} that it states")
        return data


@contextmanager
def opened(path: str | Path, key: StoreKey | None = None) -> Iterator[Archive]:
    """Open an exported session.

    Args:
        path: The file.
        key: Of an encrypted one.

    Raises:
        FormatError: It is none, or its members are not what they should be.
        WrongKeyError: The key is another one.
    """
    with open_regular(path) as (file, size):
        require_memory(_members(file, size) * MEMBER_BYTES, "reading the list of the file's members")
        file.seek(0)
        with _translated():
            archive = zipfile.ZipFile(file)
        with archive:
            yield Archive(archive, _sizes(archive, size), key)


def _members(file: BinaryIO, size: int) -> int:
    """Return how many members a zip states, before a list of them is built.

    Raises:
        FormatError: It is no zip, states more than it has room for, or has something behind it.
    """
    none = FormatError("the file is no exported session", "Name one that `kvcompress store export` wrote")
    if size < _END.size:
        raise none
    file.seek(size - _END.size)
    magic, _, _, _, count, length, start, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise none
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):
        end = size - _END.size - _LOCATOR.size
        if end < _END64.size:
            raise none
        file.seek(end - _END64.size)
        magic, *rest = _END64.unpack(file.read(_END64.size))
        if magic != b"PK\x06\x06":
            raise none
        count, length = rest[6], rest[7]
    if count * _DIRECTORY_ENTRY_BYTES > length or length > size:
        raise FormatError(f"the file states {count} members in {length} bytes")
    if length > count * MEMBER_BYTES // 4:
        raise FormatError(f"the list of the file's {count} members takes {length} bytes")
    return int(count)


def _sizes(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """Return the sizes of the members by name.

    Raises:
        FormatError: A member has another name, comes twice, is compressed or encrypted, or lies over another one.
    """
    found: dict[str, int] = {}
    free = 0
    for info in sorted(archive.infolist(), key=lambda one: one.header_offset):
        name = info.orig_filename
        if not _NAME.fullmatch(name) or info.filename != name:
            raise FormatError(f"the file holds {name[:80]!r}, which no exported session does", "Do not use it")
        if name in found:
            raise FormatError(f"the file holds {name!r} twice", "Do not use it")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~0x800 or info.file_size != info.compress_size:
            raise FormatError(f"{name!r} is not stored as it is", "Do not use it")
        if info.header_offset < free:
            raise FormatError(f"{name!r} lies over another member", "Do not use it")
        free = info.header_offset + _LOCAL_HEADER_BYTES + len(name) + info.file_size
        if free > size:
            raise FormatError(f"{name!r} ends behind the file")
        found[name] = info.file_size
    return found


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the zip reader raises into one line."""
    try:
        yield
    except _FAILURES as error:
        raise FormatError(
            f"the file is damaged or was tampered with ({first_line(error)})", "Export the session again"
        ) from error
