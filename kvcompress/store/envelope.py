"""What leaves an encrypted store: ciphertext, beside a keyring of its own that the store's key opens.

```
keyring.json     the keyring of a portable file, locked as that of a store is; a place has one as well
everything else  objects as in `crypto`: heads bound to their name, pieces and segments to their digests
```
The keyring has the store's key of digests, so logs come over bit by bit, and a root of its own, so that nobody who gets
it together with its key can decrypt the store's own files. Re-keying a store leaves what has left it as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcompress.errors import FormatError, InputError, WrongKeyError
from kvcompress.store.crypto import Cipher, Keyring, encrypted_bytes
from kvcompress.store.encrypted import EncryptedObjects
from kvcompress.store.keyring import join, user_key
from kvcompress.store.keys import StoreKey, require_cryptography
from kvcompress.store.objects import Objects, content_digest

if TYPE_CHECKING:
    from kvcompress.store.remote import Remote
    from kvcompress.store.store import Store

KEYRING = "keyring.json"
MOST_KEYRING_BYTES = 64 << 10


class Envelope:
    """That of a plain store: none."""

    digest_key = b""
    suffix = ".json"
    """Of heads."""

    def wrapped(self, name: str, data: bytes) -> bytes:
        """Return bytes as they leave.

        Args:
            name: Digest of a piece or segment, or the name of a head.
            data: The bytes.
        """
        return data

    def opened(self, name: str, data: bytes) -> bytes:
        """Return what `wrapped` was given.

        Raises:
            IntegrityError: It was changed, or lies under another's name.
        """
        return data

    def size_bytes(self, size: int) -> int:
        """Return what so many bytes take outside."""
        return size

    def objects(self, inner: Objects) -> Objects:
        """Return objects that lie outside, as they are inside."""
        return inner


class EncryptedEnvelope(Envelope):
    """That of an encrypted store.

    Args:
        ring: The keyring that lies beside.
    """

    suffix = ".bin"

    def __init__(self, ring: Keyring) -> None:
        self.cipher, self.digest_key = Cipher(ring), ring.digest_key

    def _bound(self, name: str) -> str:
        return name if len(name) == 64 else content_digest(name.encode(), self.digest_key)

    def wrapped(self, name: str, data: bytes) -> bytes:
        """See `Envelope`."""
        return self.cipher.sealed_object(self._bound(name), data)

    def opened(self, name: str, data: bytes) -> bytes:
        """See `Envelope`."""
        return self.cipher.opened_object(self._bound(name), data, name[:16] if len(name) == 64 else name)

    def size_bytes(self, size: int) -> int:
        """See `Envelope`."""
        return encrypted_bytes(size)

    def objects(self, inner: Objects) -> Objects:
        """See `Envelope`."""
        return EncryptedObjects(inner, self.cipher)


PLAIN = Envelope()


def leaving(store: Store, key: StoreKey | None = None) -> tuple[Envelope, bytes]:
    """Return a new envelope for sessions of a store, and its locked keyring; for a plain store nothing of it.

    Args:
        store: The store.
        key: Opens the keyring; None takes the store's own.

    Raises:
        WrongKeyError: The store was given another key meanwhile.
    """
    if not store.digest_key:
        return PLAIN, b""
    own = user_key(store)
    ring = Keyring.portable(store.digest_key)
    return EncryptedEnvelope(ring), ring.locked(key or own).encode()


def unlocked(data: bytes, key: StoreKey | None, what: str) -> Envelope:
    """Open an envelope by its keyring.

    Args:
        data: The keyring.
        key: The user's.
        what: What it opens, for errors.

    Raises:
        WrongKeyError: It is another key, or there is none.
        IntegrityError: The keyring was changed; `FormatError` where it is none.
        InputError: The package `cryptography` is missing.
    """
    require_cryptography()
    if key is None:
        raise WrongKeyError(f"{what} is encrypted", "Give its key file or passphrase")
    if len(data) > MOST_KEYRING_BYTES:
        raise FormatError(f"{what}'s keyring has {len(data)} bytes, more than {MOST_KEYRING_BYTES}")
    return EncryptedEnvelope(Keyring.unlocked(data.decode("utf-8", "replace"), key, what))


def enter(store: Store, place: Remote, key: StoreKey | None, *, make: bool) -> None:
    """Open the envelope of a place, or make one for the first encrypted store that comes.

    Args:
        store: The store.
        place: The place.
        key: Of the place; None takes the store's own.
        make: Whether to make one.

    Raises:
        WrongKeyError: The key is another one, or the store is not encrypted, or the place's keyring was exchanged.
        InputError: The place is of other stores.
    """
    held = place.keyring()
    if held is None:
        if not store.digest_key:
            return
        if place.is_used():
            what = "the sessions at this place are readable, and those of an encrypted store are not to lie among them"
            raise InputError(what, "Use another place", path=place.address)
        if make:
            envelope, data = leaving(store, key)
            place.put_keyring(data)
            place.protect(envelope)
        return
    require_cryptography()
    if not store.digest_key:
        remedy = "Synchronise an encrypted store; `store import --readable` takes single sessions out of it"
        raise WrongKeyError("the place is encrypted, and this store is not", remedy, path=place.address)
    envelope = unlocked(held, key or user_key(store), "the place")
    if not join(store, envelope.digest_key):
        what = "the place is of stores that make other digests, and this one holds sessions already"
        remedy = "Take sessions over by `store export` and `store import`, or synchronise a new store with the place"
        raise InputError(what, remedy, path=place.address)
    place.protect(envelope)
