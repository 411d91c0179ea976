"""Ed25519 signatures: of entries, so that a log says who wrote it, and of seals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.errors import InputError
from kvcompress.format.atomic import PathLike, open_regular
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.keys import require_cryptography, save_secret

SIGNATURE = "signature"
"""Field of a context or a seal: an object of `key`, 64 hexadecimal digits, and `value`, 128."""

ENTRY, SEAL = b"kvcompress entry 1\n", b"kvcompress seal 1\n"
"""What is signed begins with what it is, so that one signature cannot stand for another."""

MOST_KEY_FILE_BYTES = 16 << 10


class Signer:
    """A private key that signs.

    Args:
        private: 32 bytes.
    """

    def __init__(self, private: bytes) -> None:
        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"Signer({self.public[:16]}...)"

    @classmethod
    def generate(cls) -> Signer:
        """Return one with a new key."""
        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_file(cls, path: PathLike, password: bytes | None = None) -> Signer:
        """Read a private key in PEM, such as `save` and `openssl genpkey -algorithm ed25519` write.

        Raises:
            InputError: It is none, or of another kind.
        """
        require_cryptography()
        from cryptography.exceptions import InternalError, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        with open_regular(path) as (file, _):
            data = file.read(MOST_KEY_FILE_BYTES)
        try:
            found = load_pem_private_key(data, password)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
            raise InputError("is no private key in PEM", "Make one with `Signer.generate`", path=path) from error
        if not isinstance(found, Ed25519PrivateKey):
            raise InputError("is a private key of another kind than Ed25519", "Name one of that kind", path=path)
        return cls(found.private_bytes_raw())

    def save(self, path: PathLike) -> None:
        """Write the private key as PEM that only its owner may read; raises `InputError` where the file exists."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        save_secret(path, self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, purpose: bytes, message: bytes) -> dict[str, str]:
        """Return a signature, JSON-able."""
        return {"key": self.public, "value": self._key.sign(purpose + message).hex()}

    def entry(self, previous: bytes, segment: bytes, context: Mapping[str, Any]) -> dict[str, str]:
        """Return the signature of an entry; see `entry_message`."""
        return self.sign(ENTRY, entry_message(previous, segment, context))


def entry_message(previous: bytes, segment: bytes, context: Mapping[str, Any]) -> bytes:
    """Return what the signature of an entry signs.

    Args:
        previous: Digest of the entry before, 32 bytes.
        segment: Digest of its segment, 32 bytes; empty for none.
        context: Its context; a signature in it is left out.
    """
    text = canonical_json({name: value for name, value in context.items() if name != SIGNATURE})
    return b"".join(len(part).to_bytes(8, "little") + part for part in (previous, segment, text))


def signed_by(signature: object, purpose: bytes, message: bytes) -> str | None:
    """Return the public key, hexadecimal, that a signature is of; None where it is none, or does not hold.

    Raises:
        InputError: The package `cryptography` is missing.
    """
    if not isinstance(signature, Mapping) or set(signature) != {"key", "value"}:
        return None
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key, value = signature["key"], signature["value"]
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(value), purpose + message)
    except (InvalidSignature, ValueError, TypeError):
        return None
    return str(key).lower()
