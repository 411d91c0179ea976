"""Small stores to be damaged, and what is read out of one: everything that a user could look at."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch

from eval.fuzz.subject import Accepted
from kvcompress.errors import KVCompressError
from kvcompress.format.strict_json import canonical_json
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin
from kvcompress.store.columns import session_row
from kvcompress.store.keys import StoreKey
from kvcompress.store.provenance import provenance
from kvcompress.store.reading import SessionLog
from kvcompress.store.seal import seal
from kvcompress.store.signing import Signer
from kvcompress.store.store import DATABASE, SEGMENTS, Store

KEY = StoreKey(bytes(range(32)))
SIGNER_BYTES = bytes(range(1, 33))
SESSIONS, _MORE = ("first", "second", "third", "other"), ("first",)
Reading = dict[str, Any]


def session_snapshot(ids: list[int], model: str = "a") -> KVSnapshot:
    """Return a cache of one layer whose numbers follow from the ids."""
    tokens = torch.tensor(ids, dtype=torch.int64)
    places = torch.arange(len(ids))
    numbers = (tokens * 31 + places * 7)[None, :, None].float() + torch.arange(2)
    config = {"model_type": "llama", "vocab_size": 4096}
    fingerprint = ModelFingerprint(config=model * 64, weights="b" * 64, rope="c" * 64)
    origin = Origin(fingerprint, "llama", "tiny", config, "bfloat16", ("full_attention",), (True,), len(ids))
    return KVSnapshot((LayerKV(numbers.bfloat16(), -numbers.bfloat16(), places),), tokens, origin)


def fill(store: Store) -> None:
    """Make sessions that share segments, branch, go back, have names that moved, and lie at the same places."""
    first, second = store.session("first", create=True), store.session("second", create=True)
    first.append(session_snapshot([5, 6, 7]), lossless=True)
    first.checkpoint("one")
    first.append(session_snapshot([5, 6, 7, 8, 9]), lossless=True)
    first.checkpoint("two")
    first.rewind("one")
    first.append(session_snapshot([5, 6, 7, 1, 2]), lossless=True)
    first.checkpoint("one")
    first.checkpoint("gone")
    first.forget("gone")
    second.append(session_snapshot([15, 16, 17]), lossless=True)
    second.append_tokens(torch.tensor([15, 16, 17, 18, 19]))
    second.checkpoint()
    third = first.branch("third", "two")
    third.append_tokens(torch.tensor([5, 6, 7, 8, 9, 10]))
    other = store.session("other", create=True)
    other.append(session_snapshot([5, 6, 7], "d"), lossless=True)
    other.append_tokens(torch.tensor([5, 6, 7, 3, 3]))


@contextmanager
def the_same_each_time() -> Iterator[None]:
    """Stop the clock and let random bytes follow from a seed, so that a store is the same wherever it is made."""
    chance, begun = Random("stand"), 1_795_000_000.0
    moments = (begun + step / 8 for step in range(1 << 20))
    with (
        patch("time.time", lambda: next(moments)),
        patch("secrets.token_bytes", lambda count=32: chance.randbytes(count)),
        patch("secrets.token_hex", lambda count=32: chance.randbytes(count).hex()),
    ):
        yield


class Stand:
    """A store in a folder that is put back for each case.

    Args:
        folder: Where it is made.
        key: Of an encrypted one.
        make: Fills it.
        names: Of the sessions that are to be there.
    """

    def __init__(
        self,
        folder: Path,
        key: StoreKey | None = None,
        make: Callable[[Store], None] = fill,
        names: Collection[str] = SESSIONS,
    ) -> None:
        self.folder, self.key, self.signer = folder, key, Signer(SIGNER_BYTES)
        with the_same_each_time(), Store(folder, create=True, key=key, signer=self.signer) as store:
            make(store)
        with Store(folder, key=key) as store, closing(sqlite3.connect(folder / DATABASE)) as tables:
            with tables:  # how much was written depends on the number of this process
                tables.execute("UPDATE store SET written_bytes = 4096, generation = 30")
            store.database.rewrite()
        self.database = (folder / DATABASE).read_bytes()
        self.files = {path: path.read_bytes() for path in sorted((folder / SEGMENTS).glob("*/*"))}
        with self.open() as store:
            self.good = read_all(store, names)
        if any(isinstance(part, KVCompressError) for part in self.good.values()):
            raise RuntimeError("the store is not good")

    def open(self) -> Store:
        """Open it as it lies there."""
        return Store(self.folder, key=self.key, signer=self.signer)

    def restore(self, database: bytes | None = None) -> None:
        """Put back what a case may have changed, with another database where one is given."""
        for path in self.folder.glob(f"{DATABASE}*"):  # a new file: nothing that is still open can reach it
            path.unlink()
        (self.folder / DATABASE).write_bytes(self.database if database is None else database)
        held = set((self.folder / SEGMENTS).glob("*/*"))
        for path in held - self.files.keys():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        for path in self.files.keys() - held:
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(self.files[path])

    def read(self, database: bytes) -> None:
        """Read a case of the database: refused somewhere, or all of it as the good one."""
        self.restore(database)
        with self.open() as store:
            found = read_all(store, SESSIONS)
            refused = next((part for part in found.values() if isinstance(part, KVCompressError)), None)
            if database[-1] % 8 == 0:
                write_something(store)
        if refused is not None:
            raise refused
        require_good(found, self.good)


def read_all(store: Store, names: Collection[str]) -> Reading:
    """Return all that a store tells of its sessions and of those that should be there; errors where it refuses."""
    found: Reading = {}

    def take(name: str, ask: Callable[[], Any]) -> Any:
        try:
            found[name] = ask()
        except KVCompressError as error:
            if not str(error).isprintable():
                raise
            found[name] = error
        return found[name]

    take("statistics", lambda: _plain(store.statistics().to_json()))
    listed = take("list", lambda: [info.name for info in store.list()])
    for name in sorted({*names, *(listed if isinstance(listed, list) else ())}):
        session = take(f"{name}/session", partial(store.session, name))
        if isinstance(session, SessionLog):
            found[f"{name}/session"] = name
            _read_session(session, partial(_under, take, name))
    return found


def _read_session(session: SessionLog, take: Callable[[str, Callable[[], Any]], Any]) -> None:
    take("verify", lambda: _verified(session))
    take("log", lambda: [entry.to_json() for entry in session])
    names = take("names", session.names)
    for at in (None, *(names if isinstance(names, Mapping) else ())):
        take(f"ids {at}", partial(_ids, session, at))
    take("origin", lambda: _origin(session))
    if session.name in _MORE:  # the others are read by the same code, and a case is to take milliseconds
        take("backwards", lambda: [entry.number for entry in session.entries(newest_first=True)])
        take("cache", lambda: _cache(session))
        take("seal", lambda: seal(session).digest)
        take("provenance", lambda: provenance(session).to_json())


def _under(take: Callable[..., Any], name: str, what: str, ask: Callable[[], Any]) -> Any:
    return take(f"{name}/{what}", ask)


def _ids(session: SessionLog, at: str | None) -> Any:
    return session.token_ids(at).tolist()


def _verified(session: SessionLog) -> bool:
    """Return that a log is in order, or raise what its verdict says."""
    verdict = session.verify()
    if not verdict.ok:
        raise KVCompressError(verdict.what)
    return True


def _cache(session: SessionLog) -> str:
    """Return a digest of the keys and values of a state."""
    snapshot = session.snapshot()
    digest = hashlib.sha256(canonical_json(snapshot.origin.to_json()))
    for layer in snapshot.layers:
        for part in (layer.keys, layer.values, layer.positions):
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _origin(session: SessionLog) -> Any:
    with session.store.database.read() as tables:
        row = session_row(tables, session.id)
    return session.store.origin(row["origin"]).to_json() if row["origin"] else None


def _plain(told: dict[str, Any]) -> str:
    """Return only that figures can be told: what they count lies outside of the chain."""
    return str(all(isinstance(value, int | float) for value in told.values()))


def require_good(found: Reading, good: Reading) -> None:
    """Raise `Accepted` unless every session that should be there reads as it should.

    The chain does not cover what a session is called (docs/security.md), so it may be found under another's name; one
    that was never there may be found, if it holds nothing.
    """
    ours, theirs = _sessions(found), _sessions(good)
    lost = [name for name, told in theirs.items() if told not in ours.values()]
    more = [name for name, told in ours.items() if told not in theirs.values() and told.get("log") != []]
    if lost or more:
        name = (more or lost)[0]
        told, known = ours.get(name, {}), theirs.get(name, {})
        odd = sorted(part for part in told.keys() | known.keys() if told.get(part) != known.get(part))
        raise Accepted(f"session {name!r}: {', '.join(odd) or 'lost'} changed and accepted")


def _sessions(found: Reading) -> dict[str, Reading]:
    sessions: dict[str, Reading] = {}
    for key, told in found.items():
        name, _, part = key.partition("/")
        if part and part != "session":
            sessions.setdefault(name, {})[part] = _unnamed(told)
    return sessions


def _unnamed(told: Any) -> Any:
    return {**told, "session": ""} if isinstance(told, dict) and "previous" in told else told


def write_something(store: Store) -> None:
    """Go on with what may be damaged; it may be refused, and must not fail otherwise."""
    for name in ("first", "third"):
        with suppress(KVCompressError):
            session = store.session(name)
            with suppress(KVCompressError):
                session.checkpoint("new")
            with suppress(KVCompressError):
                session.append_tokens(torch.cat([session.token_ids(), torch.tensor([3])]))
            with suppress(KVCompressError):
                session.pop()
            with suppress(KVCompressError):
                session.branch("another")
    with suppress(KVCompressError):
        store.set_limit(1 << 20)
    with suppress(KVCompressError):
        store.gc(grace_seconds=0)
