"""A place that sessions are synchronised with: any fsspec address.

```
keyrings/<16 random digits>.json                                                of encrypted stores: one, see `envelope`
heads/<BLAKE2b-128 of the name>/<sequence, 12 digits>-<16 random digits>.json    see `bundle`; the highest one counts
logs/ab/cdef...                                                                 pieces, by digest
segments/ab/cdef...                                                             segments, by digest
```
A head is written last and never changed: a new one has the next sequence number. Object stores have no locks, so who
has written one looks whether it stands alone at its number and takes it back if not. Of two writers at most one stays,
and none that was told of success is lost.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

from kvcompress.errors import FormatError, InputError, KVCompressError, first_line
from kvcompress.format.atomic import atomic_write
from kvcompress.store.bundle import Head
from kvcompress.store.envelope import MOST_KEYRING_BYTES, PLAIN, Envelope
from kvcompress.store.objects import MOST_SEGMENT_BYTES, LocalObjects, Objects, RemoteObjects, checked
from kvcompress.store.pieces import MOST_HEAD_BYTES, MOST_PIECE_BYTES, pack_head, read_head

KEYRINGS, HEADS, LOGS, SEGMENTS = "keyrings", "heads", "logs", "segments"
_HEAD = re.compile(r"([0-9]{12})-[0-9a-f]{16}\.(?:json|bin)")
_KEYRING = re.compile(r"[0-9a-f]{16}\.json")
MOST_HEADS = 1 << 10
ATTEMPTS = 3


class Remote:
    """A place that sessions are synchronised with.

    Args:
        address: Its fsspec address; a path is one too.
        options: Passed on to the file system.

    Attributes:
        segments: Segments there.
        pieces: Pieces of logs there.
        latencies: Seconds that each small request took.
        transfers: Bytes and seconds of each transfer of a segment.
        sent_bytes: All that was sent there, in bytes.

    Raises:
        InputError: fsspec or the part that knows such addresses is not installed.
    """

    def __init__(self, address: str, *, options: Mapping[str, Any] | None = None) -> None:
        self.address, self._envelope, options = address, PLAIN, dict(options or {})
        base = RemoteObjects(address, **options)
        self._files, self._root = base.files, str(base.root).rstrip("/")
        self._local = type(self._files).__name__ == "LocalFileSystem"
        self.segments: Objects = self._objects(base, SEGMENTS, options)
        self.pieces: Objects = self._objects(base, LOGS, options)
        self.latencies: list[float] = []
        self.transfers: list[tuple[int, float]] = []
        self.sent_bytes = 0
        self._guard = Lock()

    def _objects(self, base: RemoteObjects, folder: str, options: dict[str, Any]) -> Objects:
        if self._local:
            return LocalObjects(Path(self._root) / folder)
        return RemoteObjects(f"{self.address.rstrip('/')}/{folder}", **options)

    # -- keys

    @property
    def digest_key(self) -> bytes:
        """See `Source`."""
        return self._envelope.digest_key

    def protect(self, envelope: Envelope) -> None:
        """Read and write through an envelope from now on."""
        self._envelope = envelope
        self.segments, self.pieces = envelope.objects(self.segments), envelope.objects(self.pieces)

    def is_used(self) -> bool:
        """Tell whether there are sessions."""
        return bool(self._listed(f"{self._root}/{HEADS}"))

    def keyring(self) -> bytes | None:
        """Return the keyring of the place, None where it is not encrypted.

        Raises:
            InputError: There are two.
        """
        names = self._keyrings()
        if len(names) > 1:
            what = "two stores came to this place at the same time, each with a keyring"
            remedy = f"Remove one of {names[0]} and {names[1]} in {KEYRINGS}, and push again what was pushed with it"
            raise InputError(what, remedy, path=self.address)
        return self._read(f"{self._root}/{KEYRINGS}/{names[0]}", MOST_KEYRING_BYTES) if names else None

    def put_keyring(self, data: bytes) -> None:
        """Give the place its keyring.

        Raises:
            InputError: Another store does the same.
        """
        name = f"{secrets.token_hex(8)}.json"
        path = f"{self._root}/{KEYRINGS}/{name}"
        self._write(path, data)
        if self._keyrings() != [name]:
            self._remove(path)
            raise InputError("another store comes to this place right now", "Synchronise again", path=self.address)

    def _keyrings(self) -> list[str]:
        paths = self._listed(f"{self._root}/{KEYRINGS}")
        return sorted(name for path in paths if _KEYRING.fullmatch(name := path.rpartition("/")[2]))

    # -- heads

    def sessions(self) -> list[str]:
        """Return the names of the sessions there."""
        found = []
        for folder in self._listed(f"{self._root}/{HEADS}"):
            head = self._head(folder.rpartition("/")[2])
            if head is not None:
                found.append(head.session)
        return sorted(found)

    def head(self, name: str) -> Head | None:
        """Return the head of a session; None where the place does not know it.

        Raises:
            InputError: Two were written at the same time, and one of them could not be taken back.
        """
        head = self._head(self._folder(name))
        if head is not None and head.session != name:
            raise FormatError(f"the head of {name!r} is one of {head.session!r}", path=self.address)
        return head

    def _folder(self, name: str) -> str:
        return hashlib.blake2b(name.encode(), digest_size=16, key=self.digest_key).hexdigest()

    def _head(self, folder: str) -> Head | None:
        for _ in range(ATTEMPTS):  # an older one may be removed between the listing and the reading
            names = self._heads(folder)
            if not names:
                return None
            top = [name for name in names if name[:12] == names[-1][:12]]
            if len(top) > 1:
                what = "two sessions of one name were pushed at the same time, and one push was cut off"
                remedy = f"Remove one of {' and '.join(top[:2])} in {HEADS}/{folder}; each names what it leads to"
                raise InputError(what, remedy, path=self.address)
            with suppress(FileNotFoundError):
                place = f"{HEADS}/{folder}/{top[0]}"
                data = self._read(f"{self._root}/{place}", self._envelope.size_bytes(MOST_HEAD_BYTES))
                return read_head(self._envelope.opened(place, data))
        raise InputError("the session changes too fast to be read", "Try again", path=self.address)

    def _heads(self, folder: str) -> list[str]:
        paths = self._listed(f"{self._root}/{HEADS}/{folder}")
        if len(paths) > MOST_HEADS:
            raise FormatError(f"there are {len(paths)} heads of one session", path=self.address)
        return sorted(name for path in paths if _HEAD.fullmatch(name := path.rpartition("/")[2]))

    def put_head(self, head: Head) -> None:
        """Let a head count, unless another one has come meanwhile; then remove those before it.

        Raises:
            InputError: Another one has come.
        """
        folder, number = self._folder(head.session), f"{head.sequence:012d}"
        name = f"{number}-{secrets.token_hex(8)}{self._envelope.suffix}"
        data = self._envelope.wrapped(f"{HEADS}/{folder}/{name}", pack_head(head))
        path = f"{self._root}/{HEADS}/{folder}/{name}"
        self._write(path, data)
        self.sent_bytes += len(data)
        names = self._heads(folder)
        if [other for other in names if other[:12] >= number] != [name]:
            self._remove(path)
            raise InputError(f"session {head.session!r} was pushed by another one meanwhile", "Synchronise again")
        for older in names[: names.index(name)]:
            self._remove(f"{self._root}/{HEADS}/{folder}/{older}")

    def prune(self, pieces: Sequence[str]) -> None:
        """Remove pieces that no head leads to any more."""
        for digest in pieces:
            with suppress(OSError, InputError):
                self.pieces.delete(digest)

    # -- pieces and segments

    def piece(self, digest: str) -> bytes:
        """See `Source`."""
        with self._reached():
            return checked(self.pieces, digest, MOST_PIECE_BYTES, self.digest_key)

    def segment(self, digest: str) -> bytes:
        """See `Source`."""
        start = time.perf_counter()
        with self._reached():
            data = self.segments.get(digest, MOST_SEGMENT_BYTES)
        self._note(len(data), time.perf_counter() - start)
        return data

    def has(self, digest: str) -> bool:
        """Tell whether a segment is there."""
        start = time.perf_counter()
        with self._reached():
            found = self.segments.size(digest) is not None
        with self._guard:
            self.latencies.append(time.perf_counter() - start)
        return found

    def put_segment(self, digest: str, data: bytes) -> None:
        """Put a segment there."""
        start = time.perf_counter()
        with self._reached():
            sent = self.segments.put(digest, data)
        self._note(sent, time.perf_counter() - start)
        with self._guard:
            self.sent_bytes += sent

    def put_piece(self, digest: str, data: bytes) -> None:
        """Put a piece of a log there."""
        with self._reached():
            self.sent_bytes += self.pieces.put(digest, data)

    def _note(self, size_bytes: int, seconds: float) -> None:
        with self._guard:
            self.transfers.append((size_bytes, seconds))

    @property
    def latency_seconds(self) -> float | None:
        """Median of the small requests; None where there was none."""
        return median(self.latencies) if self.latencies else None

    # -- the file system

    def _listed(self, folder: str) -> list[str]:
        """Return the paths in a folder as it is now."""
        start = time.perf_counter()
        with self._reached():
            self._files.invalidate_cache()
            try:
                found = [str(path).rstrip("/") for path in self._files.ls(folder, detail=False)]
            except FileNotFoundError:
                found = []
        with self._guard:
            self.latencies.append(time.perf_counter() - start)
        return [path for path in found if path != folder.rstrip("/")]

    def _read(self, path: str, most_bytes: int) -> bytes:
        with self._reached():
            size = int(self._files.size(path))
            if size > most_bytes:
                what = f"{path.rpartition('/')[2]} has {size} bytes, more than {most_bytes}"
                raise FormatError(what, path=self.address)
            return bytes(self._files.cat_file(path))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what a file system raises, each its own errors, into one line."""
        try:
            yield
        except (KVCompressError, FileNotFoundError):
            raise
        except Exception as error:
            remedy = "Check the address, the network and the permissions; what has gone over is not sent again"
            raise InputError(f"cannot be reached ({first_line(error)})", remedy, path=self.address) from error

    def _write(self, path: str, data: bytes) -> None:
        with self._reached():
            if self._local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, [data])
                return
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, data)

    def _remove(self, path: str) -> None:
        with suppress(OSError):
            self._files.rm_file(path)
