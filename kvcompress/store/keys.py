"""What opens an encrypted store: 32 bytes from a file or the environment, or a passphrase.

The user's key encrypts the store's keyring and nothing else (`kvcompress.store.keyring`), so it can be exchanged
without touching what is stored. A passphrase goes through scrypt, whose parameters are kept beside the keyring.
"""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvcompress.errors import FormatError, InputError, WrongKeyError
from kvcompress.format.atomic import PathLike, open_regular, refused, require_writable, sync_directory
from kvcompress.format.json_fields import JsonFields

ENVIRONMENT = "KVCOMPRESS_STORE_KEY"
KEY_BYTES = 32
SALT_BYTES = 16
HKDF, SCRYPT = "hkdf-sha256", "scrypt"

SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 17, 8, 1
"""128 MiB and about half a second for each passphrase that is tried."""

MOST_SCRYPT_BYTES, MOST_SCRYPT_PASSES = 256 << 20, 4
"""Of parameters that somebody else may have written."""

MOST_KEY_FILE_BYTES = 1024
_MISSING = "encryption and signatures need the package `cryptography`, which is not installed"


@dataclass(frozen=True, slots=True)
class StoreKey:
    """A user's key.

    Attributes:
        secret: 32 bytes, or the passphrase in UTF-8.
        is_passphrase: Which of the two it is.
        cost: For passphrases scrypt's N, a power of two, where a keyring is made; memory is 1 KiB times N.
    """

    secret: bytes = field(repr=False)
    is_passphrase: bool = False
    cost: int = SCRYPT_N

    @classmethod
    def generate(cls) -> StoreKey:
        """Return a new random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_hex(cls, text: str, where: object = None) -> StoreKey:
        """Read a key of 64 hexadecimal digits.

        Raises:
            InputError: It is none.
        """
        try:
            secret = bytes.fromhex(text.strip())
        except ValueError:
            secret = b""
        if len(secret) != KEY_BYTES:
            remedy = "Make a key with `kvcompress store init --new-key FILE`, or use a passphrase"
            raise InputError(f"a key is {2 * KEY_BYTES} hexadecimal digits, and this is none", remedy, path=where)
        return cls(secret)

    @classmethod
    def from_file(cls, path: PathLike) -> StoreKey:
        """Read a key file: 64 hexadecimal digits, or the 32 bytes themselves; raises as `from_hex`."""
        with open_regular(path) as (file, _):
            data = file.read(MOST_KEY_FILE_BYTES)
        return cls(data) if len(data) == KEY_BYTES else cls.from_hex(data.decode("ascii", "replace"), path)

    @classmethod
    def from_environment(cls, name: str = ENVIRONMENT) -> StoreKey:
        """Read a key from an environment variable; raises as `from_hex`, and where it is not set."""
        text = os.environ.get(name)
        if not text:
            raise InputError(f"the environment variable {name} is not set", "Set it to the key, or name a key file")
        return cls.from_hex(text, f"${name}")

    @classmethod
    def from_passphrase(cls, text: str, *, cost: int = SCRYPT_N) -> StoreKey:
        """Return the key of a passphrase, the same however a keyboard composes its letters.

        Raises:
            InputError: It is empty, or the cost is none that scrypt knows.
        """
        if not text:
            raise InputError("the passphrase is empty", "Choose one")
        if cost < 2 or cost & (cost - 1) or 128 * cost * SCRYPT_R > MOST_SCRYPT_BYTES:
            raise InputError(f"{cost} is no cost of scrypt", f"Use a power of two, such as {SCRYPT_N}")
        return cls(unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass"), True, cost)

    def save(self, path: PathLike) -> None:
        """Write a key file that only its owner may read.

        Raises:
            InputError: It is a passphrase, the file exists, or it cannot be written.
        """
        if self.is_passphrase:
            raise InputError("a passphrase is not written to a file")
        save_secret(path, self.secret.hex().encode() + b"\n")

    def fresh_parameters(self) -> dict[str, Any]:
        """Return new parameters for `derive`, JSON-able, with a random salt."""
        salt = secrets.token_hex(SALT_BYTES)
        if not self.is_passphrase:
            return {"name": HKDF, "salt": salt}
        return {"name": SCRYPT, "n": self.cost, "r": SCRYPT_R, "p": SCRYPT_P, "salt": salt}

    def derive(self, parameters: Mapping[str, Any], count: int, what: str = "the store") -> bytes:
        """Return `count` bytes that only the key and these parameters give.

        Args:
            parameters: As `fresh_parameters` gives them.
            count: How many.
            what: What the key is to open, for errors.

        Raises:
            WrongKeyError: They are made for a key of the other kind.
            FormatError: They are damaged, or cost more than any that this package makes.
        """
        given = JsonFields(parameters, "the parameters of the key:")
        name = given.text("name")
        wanted = SCRYPT if self.is_passphrase else HKDF
        if name in (SCRYPT, HKDF) and name != wanted:
            needs = "a passphrase" if name == SCRYPT else "a key from a file or the environment"
            raise WrongKeyError(f"wrong key: {what} opens with {needs}", "Give that")
        try:
            salt = bytes.fromhex(given.text("salt"))
        except ValueError:
            salt = b""
        if name != wanted or len(salt) != SALT_BYTES:
            raise FormatError("the parameters of the key are damaged", "Restore it from a copy")
        return _scrypt(self.secret, salt, given, count) if name == SCRYPT else expand(self.secret, salt, b"wrap", count)


def _scrypt(secret: bytes, salt: bytes, given: JsonFields, count: int) -> bytes:
    n, r, p = (given.integer(name) for name in ("n", "r", "p"))
    possible = n >= 2 and not n & (n - 1) and r >= 1 and 128 * n * r <= MOST_SCRYPT_BYTES
    if not possible or not 1 <= p <= MOST_SCRYPT_PASSES:
        raise FormatError("the parameters of scrypt are out of range", "Restore it from a copy")
    require_cryptography()
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return bytes(Scrypt(salt=salt, length=count, n=n, r=r, p=p).derive(secret))


def expand(secret: bytes, salt: bytes, purpose: bytes, count: int) -> bytes:
    """Return `count` bytes for one purpose out of a secret of full strength, by HKDF-SHA256."""
    require_cryptography()
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF as Expansion

    info = b"kvcompress store " + purpose
    return bytes(Expansion(algorithm=SHA256(), length=count, salt=salt or None, info=info).derive(secret))


def require_cryptography() -> None:
    """Raise `InputError` where the package is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise InputError(_MISSING, "Install it with `pip install 'kvcompress[store]'`") from error


def save_secret(path: PathLike, data: bytes) -> None:
    """Write a new file that only its owner may ever read.

    Raises:
        InputError: There is one, or it cannot be written.
    """
    require_writable(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(path)
            raise
    except FileExistsError as error:
        raise InputError("already exists", "Choose another name", path=path) from error
    except OSError as error:
        raise refused("cannot be written", error, path) from error
    sync_directory(Path(path).absolute().parent)
