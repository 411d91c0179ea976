"""The keyring of a store: made with it, opened with the user's key, given another key.

```
re-keying   1  one transaction: names and contexts encrypted anew, the keyring with both epochs under the new key
            2  each segment encrypted anew, one file after another
            3  one transaction: the keyring without the old epoch
```
Before the end of step 1 the old key opens the store, after it the new one, whenever the process was killed; steps 2 and
3 are taken up again by `finish_rekey`. Digests and anchors stay as they are, so seals and signatures hold on.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from kvcompress.errors import InputError, IntegrityError, WrongKeyError
from kvcompress.store.cover import PLAIN, Cover, EncryptedCover, raw_rows
from kvcompress.store.crypto import Cipher, Keyring, changed_key
from kvcompress.store.encrypted import EncryptedObjects
from kvcompress.store.keys import StoreKey, require_cryptography
from kvcompress.store.writer import GONE, read_writer, state_of

if TYPE_CHECKING:
    from kvcompress.store.database import Database
    from kvcompress.store.objects import Objects
    from kvcompress.store.store import Store

BATCH = 1000


def is_encrypted(database: Database) -> bool:
    """Tell whether a store is encrypted."""
    with database.read() as tables:
        return tables.execute("SELECT 1 FROM keyring").fetchone() is not None


def protect(database: Database, key: StoreKey | None, *, create: bool) -> Cover:
    """Open a store's keyring and let it cover the database.

    Args:
        database: Of the store.
        key: The user's, None for a store that is not encrypted.
        create: Make a keyring for an empty store that has none.

    Raises:
        WrongKeyError: It is another key, or the store is encrypted and there is none, or the other way round.
        IntegrityError: The keyring was changed.
        InputError: The package `cryptography` is missing.
    """
    cover = _cover(database, key, create=create)
    database.protect(cover)
    return cover


def _cover(database: Database, key: StoreKey | None, *, create: bool) -> Cover:
    if key is not None:
        require_cryptography()
        if create:
            with database.write() as tables:
                _make(tables, key)
    with database.read() as tables:
        row = tables.execute("SELECT ring FROM keyring").fetchone()
    path = database.path.parent
    if row is None and key is None:
        return PLAIN
    if row is None:
        raise WrongKeyError("a key was given, but the store is not encrypted", "Leave it out", path=path)
    require_cryptography()
    if key is None:
        raise WrongKeyError("the store is encrypted", "Give its key file or passphrase", path=path)
    return _cover_by(Keyring.unlocked(str(row["ring"]), key), database, key, str(row["ring"]))


def _cover_by(ring: Keyring, database: Database, key: StoreKey, locked: str) -> EncryptedCover:
    return EncryptedCover(Cipher(ring, database.epoch), key, locked)


def user_key(store: Store) -> StoreKey:
    """Return the key that an encrypted store was opened with.

    Raises:
        WrongKeyError: The store has another one by now.
    """
    cover = _cover_of(store)
    with store.database.read() as tables:
        _require_same(tables, cover)
    return cover.key


def _require_same(tables: sqlite3.Connection, cover: EncryptedCover) -> None:
    """Raise `WrongKeyError` where the keyring was exchanged, by whatever key."""
    if tables.execute("SELECT ring FROM keyring").fetchone()["ring"] != cover.locked:
        raise changed_key()


def join(store: Store, digest_key: bytes) -> bool:
    """Let an encrypted store make digests as other stores do, so that their logs come over bit by bit.

    Args:
        store: The store.
        digest_key: Of the others.

    Returns:
        Whether it does now; a store that holds anything keeps its own.

    Raises:
        WrongKeyError: It was given another key meanwhile.
    """
    cover = _cover_of(store)
    if cover.digest_key == digest_key:
        return True
    with store.database.read() as tables:
        if _is_used(tables):
            return False
    ring, key = cover.cipher.ring.joined(digest_key), user_key(store)
    text = ring.locked(key)
    with store.database.write() as tables:
        _require_same(tables, cover)
        if _is_used(tables):
            return False
        tables.execute("UPDATE keyring SET epoch = ?, ring = ?", (ring.epoch, text))
    _adopt(store, _cover_by(ring, store.database, key, text))
    return True


def _is_used(tables: sqlite3.Connection) -> bool:
    asked = (f"SELECT 1 FROM {table}" for table in ("sessions", "segments", "origins"))
    return any(tables.execute(one).fetchone() for one in asked)


def _make(tables: sqlite3.Connection, key: StoreKey) -> None:
    """Make the keyring of a store that holds nothing yet."""
    if not _is_used(tables) and tables.execute("SELECT 1 FROM keyring").fetchone() is None:
        ring = Keyring.generate()
        tables.execute("INSERT INTO keyring VALUES (0, ?, ?)", (ring.epoch, ring.locked(key)))


def protected(objects: Objects, cover: Cover) -> Objects:
    """Return objects as a cover wants them."""
    return EncryptedObjects(objects, cover.cipher) if isinstance(cover, EncryptedCover) else objects


def rekey(store: Store, key: StoreKey, *, everything: bool = True) -> int:
    """Give a store another key.

    Args:
        store: The store, encrypted and open; threads should neither collect nor import meanwhile.
        key: The new key.
        everything: Encrypt all that is stored anew, so that the old key together with an old copy of the database
            opens nothing of it; False exchanges the key of the keyring alone, at once.

    Returns:
        How many segments were encrypted anew.

    Raises:
        InputError: The store is not encrypted, or another process writes to it.
        IntegrityError: Something stored was tampered with; the old key stays where a name or a context was.
    """
    ring = _cover_of(store).cipher.ring
    if not everything:
        _keep(store, ring, key)
        return 0
    done = finish_rekey(store, key) if len(ring.roots) > 1 else 0
    old = _cover_of(store).cipher
    ring = old.ring.advanced()
    cover = _cover_by(ring, store.database, key, ring.locked(key))
    with store.database.write() as tables:
        _require_alone(tables, store)
        _cover_anew(tables, old, cover)
        tables.execute("UPDATE keyring SET epoch = ?, ring = ?", (cover.epoch, cover.locked))
    _adopt(store, cover)
    return done + finish_rekey(store, key)


def finish_rekey(store: Store, key: StoreKey) -> int:
    """Encrypt anew what an interrupted re-keying has left, and give the old epoch up.

    Args:
        store: The store, open with its present key.
        key: That key.

    Returns:
        How many segments were encrypted anew.

    Raises:
        IntegrityError: A segment was tampered with; the old epoch is kept until it is restored, or gone.
    """
    cipher, objects = _cover_of(store).cipher, store.objects
    if len(cipher.ring.roots) == 1 or not isinstance(objects, EncryptedObjects):
        return 0
    count, failure = 0, None
    with store.database.read() as tables:
        wanted = {bytes(row["digest"]).hex() for row in tables.execute("SELECT digest FROM segments")}
    for found in list(objects.found()):
        if found.name in wanted:
            try:
                count += bool(store.written(objects.renew(found.name)))
            except IntegrityError as error:  # the others first
                failure = failure or error
    if failure is not None:
        raise failure
    _keep(store, cipher.ring.renewed(), key)
    store.database.rewrite()
    return count


def is_rekeying(store: Store) -> bool:
    """Tell whether a re-keying was interrupted, see `finish_rekey`."""
    return isinstance(store.cover, EncryptedCover) and len(store.cover.cipher.ring.roots) > 1


def _cover_of(store: Store) -> EncryptedCover:
    if not isinstance(store.cover, EncryptedCover):
        remedy = "Make an encrypted store and import its sessions there"
        raise InputError("the store is not encrypted", remedy, path=store.path)
    return store.cover


def _keep(store: Store, ring: Keyring, key: StoreKey) -> None:
    """Put a keyring of the present epoch in the place of the one that is there."""
    text = ring.locked(key)
    with store.database.write() as tables:
        tables.execute("UPDATE keyring SET ring = ?", (text,))
    _adopt(store, _cover_by(ring, store.database, key, text))


def _adopt(store: Store, cover: EncryptedCover) -> None:
    store.cover = cover
    store.database.protect(cover)
    if isinstance(store.objects, EncryptedObjects):
        store.objects.cipher = cover.cipher


def _require_alone(tables: sqlite3.Connection, store: Store) -> None:
    """Raise `InputError` where a living process writes to a session: what it is about to write has the old key."""
    for row in tables.execute("SELECT writer FROM sessions WHERE writer IS NOT NULL").fetchall():
        writer = read_writer(row["writer"])
        if writer is not None and writer != store.writer and state_of(writer) != GONE:
            what = f"process {writer.get('pid')} on {str(writer.get('host'))[:60]} writes to the store"
            raise InputError(what, "Re-key when it has ended", path=store.path)


def _cover_anew(tables: sqlite3.Connection, old: Cipher, cover: EncryptedCover) -> None:
    """Encrypt all names, contexts and origins with another cipher, within a transaction."""
    new = cover.cipher
    for row in raw_rows(tables, "SELECT id, name FROM sessions WHERE name IS NOT NULL"):
        tables.execute("UPDATE sessions SET name = ? WHERE id = ?", (new.name(old.opened(row["name"])), row["id"]))
    for row in raw_rows(tables, "SELECT session, name FROM names"):
        name = new.name(old.opened(row["name"]))
        tables.execute("UPDATE names SET name = ? WHERE session = ? AND name = ?", (name, row["session"], row["name"]))
    for row in raw_rows(tables, "SELECT digest, origin FROM origins"):
        origin = new.value(old.opened(row["origin"]))
        tables.execute("UPDATE origins SET origin = ? WHERE digest = ?", (origin, row["digest"]))
    last = -1
    while rows := raw_rows(tables, "SELECT id, context FROM entries WHERE id > ? ORDER BY id LIMIT ?", (last, BATCH)):
        for row in rows:
            last = row["id"]
            tables.execute("UPDATE entries SET context = ? WHERE id = ?", (new.value(old.opened(row["context"])), last))
