"""A new store: made whole under another name, so that there is never one without its limit, its place or its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvcompress.errors import InputError, KVCompressError
from kvcompress.format.atomic import atomic_path
from kvcompress.store.database import Database
from kvcompress.store.keyring import protect
from kvcompress.store.keys import StoreKey
from kvcompress.store.settings import keep


def create_store(path: Path, settings: dict[str, Any], key: StoreKey | None) -> None:
    """Make a store's database, and the folder where it is to lie.

    One that another process made meanwhile is left as it is.

    Args:
        path: Of the database.
        settings: What the store is told.
        key: Of an encrypted store, None for another.

    Raises:
        InputError: It cannot be made.
    """
    _make_folder(path.parent)
    try:
        with atomic_path(path) as place:
            database = Database(place, create=True)
            try:
                keep(database, settings)
                protect(database, key, create=True)
            finally:
                database.close()
    except KVCompressError as error:
        if not path.is_file():
            error.path = None if error.path is None else path
            raise


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be made: {(error.strerror or str(error)).lower()}"
        raise InputError(what, "Choose another place", path=path) from error
