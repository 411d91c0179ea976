"""Bytes that only the holder of a store's keyring can read or write: AES-256-GCM, for names AES-256-SIV.

```
value in the database   mark 4 | epoch u32 | nonce 12 | ciphertext | tag 16      authenticated: mark, epoch, purpose
name in the database    mark 4 | epoch u32 | SIV 16 | ciphertext                 authenticated: mark, epoch, purpose
object                  mark 8 | version u32 | epoch u32 | bytes u64 |
                        for each 16 MiB of content: nonce 12 | ciphertext | tag 16
                                                 authenticated: all before the first nonce, digest, index of the piece
```
Numbers are little-endian. Every nonce is random and used once. Names have to be found by their equality, so equal ones
give equal bytes, which is what SIV is made for (RFC 5297). An epoch is the time between two keys of a store; the key of
each purpose comes from the epoch's root by HKDF.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kvcompress.errors import FormatError, IntegrityError, WrongKeyError
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.limits import require_memory
from kvcompress.format.strict_json import canonical_json, parse_json
from kvcompress.store.keys import KEY_BYTES, StoreKey, expand

VALUE_MARK, NAME_MARK, OBJECT_MARK = b"\x89KVe", b"\x89KVn", b"\x89KVE\r\n\x1a\n"
OBJECT_VERSION = 1
NONCE_BYTES, TAG_BYTES = 12, 16
PIECE_BYTES = 16 << 20
MOST_EPOCH = (1 << 32) - 1

_VALUE = struct.Struct("<4sI")
_OBJECT = struct.Struct("<8sIIQ")
_CHECK_BYTES = 16
_RESTORE = "Restore it from a copy"


@dataclass(frozen=True, slots=True)
class Keyring:
    """All secrets of a store.

    Attributes:
        digest_key: 32 bytes, key of digests of contents, names of segments among them; it is never exchanged, for
            what was anchored and sealed names segments by it.
        roots: 32 bytes for each epoch of which something may be left.
        epoch: The present one; what is written belongs to it.
    """

    digest_key: bytes = field(repr=False)
    roots: Mapping[int, bytes] = field(repr=False)
    epoch: int

    @classmethod
    def generate(cls) -> Keyring:
        """Return the keyring of a new store."""
        return cls(secrets.token_bytes(KEY_BYTES), {1: secrets.token_bytes(KEY_BYTES)}, 1)

    def advanced(self) -> Keyring:
        """Return the same in a new epoch, from which the old ones can still be read."""
        return replace(self, roots={**self.roots, self.epoch + 1: secrets.token_bytes(KEY_BYTES)}, epoch=self.epoch + 1)

    def renewed(self) -> Keyring:
        """Return the same without the old epochs."""
        return replace(self, roots={self.epoch: self.roots[self.epoch]})

    # -- in the database

    def locked(self, key: StoreKey) -> str:
        """Return it as JSON that only a user's key opens."""
        parameters = key.fresh_parameters()
        wrapping, check = _wrapping(key, parameters)
        nonce = secrets.token_bytes(NONCE_BYTES)
        head = {"format": "kvcompress-keyring-1", "kdf": parameters, "check": check.hex(), "nonce": nonce.hex()}
        roots = {str(epoch): root.hex() for epoch, root in self.roots.items()}
        text = canonical_json({"digest_key": self.digest_key.hex(), "roots": roots, "epoch": self.epoch})
        ring = _gcm(wrapping).encrypt(nonce, text, canonical_json(head))
        return canonical_json({**head, "ring": ring.hex()}).decode()

    @classmethod
    def portable(cls, digest_key: bytes) -> Keyring:
        """Return a keyring for what leaves a store: of the same digests, with a root of its own."""
        return cls(digest_key, {1: secrets.token_bytes(KEY_BYTES)}, 1)

    def joined(self, digest_key: bytes) -> Keyring:
        """Return the same in a new epoch alone, with the digests of other stores; nothing may be stored yet."""
        return replace(self.advanced().renewed(), digest_key=digest_key)

    @classmethod
    def unlocked(cls, text: str, key: StoreKey, what: str = "the store") -> Keyring:
        """Read what `locked` returned.

        Args:
            text: The keyring.
            key: The user's.
            what: What it opens, for errors.

        Raises:
            WrongKeyError: It is another key.
            IntegrityError: The right key finds it changed.
            FormatError: It is damaged.
        """
        from cryptography.exceptions import InvalidTag

        name = f"{what}'s keyring"
        held = parse_json(text.encode("utf-8", "surrogatepass"), name)
        given = JsonFields(held, f"{name}:", only=("format", "kdf", "check", "nonce", "ring"))
        if given.text("format") != "kvcompress-keyring-1":
            raise FormatError(f"{name} is of a later version", "Upgrade kvcompress")
        wrapping, check = _wrapping(key, given.value("kdf"), what)
        if given.text("check") != check.hex():
            raise WrongKeyError(f"wrong key: it does not open {what}", f"Give the key or passphrase of {what}")
        head = {name: value for name, value in held.items() if name != "ring"}
        try:
            nonce, ring = bytes.fromhex(given.text("nonce")), bytes.fromhex(str(given.value("ring")))
            plain = _gcm(wrapping).decrypt(nonce, ring, canonical_json(head))
        except (InvalidTag, ValueError) as error:
            raise IntegrityError(f"{name} was changed: the key is right, its tag is not", _RESTORE) from error
        return cls._of(parse_json(plain, name))

    @classmethod
    def _of(cls, held: Any) -> Keyring:
        given = JsonFields(held, "the store's keyring:")
        roots = {int(epoch): bytes.fromhex(root) for epoch, root in given.value("roots").items()}
        return cls(bytes.fromhex(given.text("digest_key")), roots, given.integer("epoch", MOST_EPOCH))


def _wrapping(key: StoreKey, parameters: Any, what: str = "the store") -> tuple[bytes, bytes]:
    """Return the key that the keyring lies under, and bytes by which a wrong one is told from damage."""
    derived = key.derive(parameters, KEY_BYTES + _CHECK_BYTES, what)
    return derived[:KEY_BYTES], derived[KEY_BYTES:]


def _gcm(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


class Cipher:
    """Encrypts and decrypts with a keyring.

    Args:
        ring: The keyring.
        latest: Returns the store's epoch as it is now: another process may have given it another key.
    """

    def __init__(self, ring: Keyring, latest: Callable[[], int] = lambda: 0) -> None:
        self.ring, self.latest = ring, latest
        self._keys: dict[tuple[int, bytes], Any] = {}

    @property
    def epoch(self) -> int:
        """The present epoch."""
        return self.ring.epoch

    def _key(self, epoch: int, purpose: bytes) -> Any:
        """Return the cipher of an epoch and a purpose.

        Raises:
            WrongKeyError: It is newer than the keyring.
            IntegrityError: The store knows no such epoch.
        """
        found = self._keys.get((epoch, purpose))
        if found is None:
            root = self.ring.roots.get(epoch)
            if root is None:
                raise changed_key() if self.epoch < epoch <= self.latest() else unknown_epoch()
            found = self._made(root, purpose)
            self._keys[epoch, purpose] = found
        return found

    def _made(self, root: bytes, purpose: bytes) -> Any:
        if purpose != b"names":
            return _gcm(expand(root, b"", purpose, KEY_BYTES))
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        return AESSIV(expand(root, b"", purpose, 2 * KEY_BYTES))

    @cached_property
    def _failures(self) -> tuple[type[Exception], ...]:
        from cryptography.exceptions import InvalidTag

        return InvalidTag, ValueError

    # -- values of the database

    def value(self, text: bytes) -> bytes:
        """Encrypt a value."""
        head, nonce = _VALUE.pack(VALUE_MARK, self.epoch), secrets.token_bytes(NONCE_BYTES)
        return head + nonce + bytes(self._key(self.epoch, b"values").encrypt(nonce, text, head + b"value"))

    def name(self, text: bytes) -> bytes:
        """Encrypt a name, equal ones to equal bytes."""
        head = _VALUE.pack(NAME_MARK, self.epoch)
        return head + bytes(self._key(self.epoch, b"names").encrypt(text, [head + b"name"]))

    def opened(self, data: bytes) -> bytes:
        """Decrypt a value or a name.

        Raises:
            IntegrityError: It was changed, or never encrypted.
            WrongKeyError: It belongs to another epoch.
        """
        if len(data) < _VALUE.size or data[:4] not in (VALUE_MARK, NAME_MARK):
            raise _tampered("a value in the database")
        head, body = data[: _VALUE.size], data[_VALUE.size :]
        mark, epoch = _VALUE.unpack(head)
        try:
            if mark == NAME_MARK:
                return bytes(self._key(epoch, b"names").decrypt(body, [head + b"name"]))
            nonce, rest = body[:NONCE_BYTES], body[NONCE_BYTES:]
            return bytes(self._key(epoch, b"values").decrypt(nonce, rest, head + b"value"))
        except self._failures as error:
            raise _tampered("a value in the database") from error

    # -- objects

    def sealed_object(self, digest: str, data: bytes) -> bytes:
        """Encrypt the content of an object.

        Args:
            digest: Its digest, hexadecimal, under which it will lie.
            data: Its content.
        """
        head, cipher = (
            _OBJECT.pack(OBJECT_MARK, OBJECT_VERSION, self.epoch, len(data)),
            self._key(self.epoch, b"objects"),
        )
        pieces, whole = [head], memoryview(data)
        for index in range(_pieces(len(data))):
            nonce = secrets.token_bytes(NONCE_BYTES)
            piece = whole[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
            pieces += [nonce, cipher.encrypt(nonce, piece, _about(head, digest, index))]
        return b"".join(pieces)

    def opened_object(self, digest: str, data: bytes, what: str = "") -> bytes:
        """Decrypt an object.

        Args:
            digest: As it was encrypted with.
            data: The encrypted bytes.
            what: What it is, for errors; a segment where nothing is said.

        Raises:
            IntegrityError: It was changed, cut, or lies under another's name.
            WrongKeyError: It belongs to another epoch.
        """
        what = what or f"the segment {digest[:16]}"
        size = _stated_bytes(data, what)
        if len(data) != encrypted_bytes(size):
            raise _tampered(what)
        require_memory(size, f"decrypting {what}")
        head, at, whole, pieces = data[: _OBJECT.size], _OBJECT.size, memoryview(data), []
        cipher = self._key(object_epoch(data), b"objects")
        try:
            for index in range(_pieces(size)):
                end = at + NONCE_BYTES + min(PIECE_BYTES, size - index * PIECE_BYTES) + TAG_BYTES
                nonce, body = whole[at : at + NONCE_BYTES], whole[at + NONCE_BYTES : end]
                pieces.append(cipher.decrypt(nonce, body, _about(head, digest, index)))
                at = end
        except self._failures as error:
            raise _tampered(what) from error
        return b"".join(pieces)


def _stated_bytes(data: bytes, what: str) -> int:
    """Return how long an object says that its content is; raises `IntegrityError` where it is none."""
    if len(data) < _OBJECT.size:
        raise _tampered(what)
    mark, version, _, size = _OBJECT.unpack_from(data)
    if mark != OBJECT_MARK or version != OBJECT_VERSION:
        raise _tampered(what)
    return int(size)


def object_epoch(data: bytes) -> int:
    """Return the epoch that an object belongs to, 0 where it is none."""
    if len(data) < _OBJECT.size or data[: len(OBJECT_MARK)] != OBJECT_MARK:
        return 0
    return int(_OBJECT.unpack_from(data)[2])


def encrypted_bytes(size: int) -> int:
    """Return what an object takes on the disk whose content has `size` bytes."""
    return _OBJECT.size + size + _pieces(size) * (NONCE_BYTES + TAG_BYTES)


def _pieces(size: int) -> int:
    return max(1, -(-size // PIECE_BYTES))


def _about(head: bytes, digest: str, index: int) -> bytes:
    return head + bytes.fromhex(digest) + index.to_bytes(8, "little")


def _tampered(what: str) -> IntegrityError:
    return IntegrityError(f"tampered with or damaged: {what} is not what the key wrote", _RESTORE)


def changed_key() -> WrongKeyError:
    """Return the error that a store has another key by now."""
    return WrongKeyError("the store was given a new key meanwhile", "Open it again with that key")


def unknown_epoch() -> IntegrityError:
    """Return the error that something belongs to a key that the store has given up, or never had."""
    return IntegrityError("tampered with or damaged: something is of a key that the store does not have", _RESTORE)
