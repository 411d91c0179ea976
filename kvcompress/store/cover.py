"""What the database holds in readable form and what not: a plain store covers nothing, an encrypted one all it says.

Names and contexts are covered as they are written, by whoever writes them, and uncovered in the row factory of the
connection, so nobody who reads has to think of it. Columns of numbers, kinds, times and keyed digests stay readable;
`docs/security.md` lists them.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from kvcompress.errors import IntegrityError, KVCompressError
from kvcompress.store.crypto import Cipher
from kvcompress.store.keys import StoreKey

COVERED = ("context", "name")
"""Columns that hold text in a plain store and encrypted bytes in the others. `origins.origin` is covered too, and bound
to its digest; `sessions.origin` is that digest."""

_SALT_BYTES = 16


class Cover:
    """The cover of a plain store: none."""

    encrypted = False
    epoch = 0
    digest_key = b""

    def text(self, text: bytes) -> str | bytes:
        """Return text as the database is to hold it."""
        return text.decode()

    def name(self, name: str, session: int = 0) -> str | bytes:
        """Return a name as the database holds it, of a checkpoint that of its session; to be looked up by equality."""
        return name

    def read(self, column: str, value: Any) -> Any:
        """Return a value that a column holds as it was written."""
        return value

    def whole(self, value: Any) -> Any:
        """Return a context as it was written, and b"" where it is not what the key wrote."""
        return value

    def salt(self) -> dict[str, str]:
        """Return what a context takes in so that nobody can guess it by its anchor."""
        return {}


class EncryptedCover(Cover):
    """The cover of an encrypted store.

    Args:
        cipher: Its cipher.
        key: The user's, which the keyring lies under.
        locked: The keyring as the database held it when it was opened.
    """

    encrypted = True

    def __init__(self, cipher: Cipher, key: StoreKey, locked: str) -> None:
        self.cipher, self.key, self.locked = cipher, key, locked
        self.epoch, self.digest_key = cipher.epoch, cipher.ring.digest_key

    def text(self, text: bytes) -> bytes:
        """See `Cover`."""
        return self.cipher.value(text)

    def name(self, name: str, session: int = 0) -> bytes:
        """See `Cover`."""
        return self.cipher.name(session.to_bytes(8, "little") + name.encode("utf-8", "surrogatepass"))

    def read(self, column: str, value: Any) -> Any:
        """See `Cover`.

        Raises:
            IntegrityError: It is not what the key wrote.
        """
        if column in COVERED and value is not None:
            if type(value) is not bytes:
                what = f"tampered with: the column {column!r} of an encrypted store holds a readable value"
                raise IntegrityError(what, "Restore the store from a copy")
            return self.cipher.opened(value)[8 * (column == "name") :].decode("utf-8", "surrogatepass")
        return self.cipher.opened(value).decode() if column == "origin" and type(value) is bytes else value

    def whole(self, value: Any) -> Any:
        """See `Cover`."""
        with suppress(KVCompressError):
            return self.read("context", value)
        return b""

    def salt(self) -> dict[str, str]:
        """See `Cover`."""
        return {"salt": secrets.token_hex(_SALT_BYTES)}


PLAIN = Cover()


class Tables(sqlite3.Connection):
    """A connection that knows what covers the database."""

    cover: Cover = PLAIN

    def protect(self, cover: Cover) -> None:
        """Uncover all rows from now on."""
        self.cover = cover
        self.row_factory = self._row if cover.encrypted else sqlite3.Row

    def _row(self, cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> sqlite3.Row:
        read = self.cover.read
        named = zip(cursor.description, values, strict=True)
        return sqlite3.Row(cursor, tuple(read(column[0], value) for column, value in named))


def cover_of(tables: sqlite3.Connection) -> Cover:
    """Return what covers the database of a connection."""
    return tables.cover if isinstance(tables, Tables) else PLAIN


def raw_rows(tables: sqlite3.Connection, asked: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
    """Return the rows of a query as they lie in the database."""
    cursor = tables.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(asked, values).fetchall()
