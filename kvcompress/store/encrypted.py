"""Segments that are encrypted where they lie: whoever puts and gets sees their content, the disk never does."""

from __future__ import annotations

from collections.abc import Iterator

from kvcompress.errors import KVCompressError
from kvcompress.store.crypto import Cipher, changed_key, encrypted_bytes, object_epoch
from kvcompress.store.objects import MOST_SEGMENT_BYTES, Found, Objects


class EncryptedObjects:
    """Objects under a cipher; their digests are those of the content, keyed, so equal contents lie there once.

    Args:
        inner: Where the encrypted bytes lie.
        cipher: Encrypts them.
    """

    def __init__(self, inner: Objects, cipher: Cipher) -> None:
        self.inner, self.cipher = inner, cipher

    def put(self, digest: str, data: bytes) -> int:
        """See `Objects`; what lies there already in a form that this key opens stays as it is."""
        if self.inner.size(digest) == encrypted_bytes(len(data)):
            held = self.inner.get(digest)
            if self.cipher.epoch < object_epoch(held) <= self.cipher.latest():
                raise changed_key()
            try:
                if self.cipher.opened_object(digest, held) == data:
                    return self.inner.put(digest, held)  # sees to it that it is on the disk
            except KVCompressError:  # damaged, or of a key that was given up
                pass
        sealed = self.cipher.sealed_object(digest, data)
        return self.inner.replace(digest, sealed)

    def replace(self, digest: str, data: bytes) -> int:
        """See `Objects`."""
        return self.inner.replace(digest, self.cipher.sealed_object(digest, data))

    def get(self, digest: str, most_bytes: int = MOST_SEGMENT_BYTES) -> bytes:
        """See `Objects`; raises `IntegrityError` where the bytes are not what the key wrote."""
        return self.cipher.opened_object(digest, self.inner.get(digest, encrypted_bytes(most_bytes)))

    def renew(self, digest: str) -> int:
        """Encrypt an object anew where it belongs to an earlier epoch; return how many bytes were written."""
        held = self.inner.get(digest)
        if object_epoch(held) == self.cipher.epoch:
            return 0
        return self.replace(digest, self.cipher.opened_object(digest, held))

    def size(self, digest: str) -> int | None:
        """See `Objects`."""
        return self.inner.size(digest)

    def delete(self, digest: str) -> None:
        """See `Objects`."""
        self.inner.delete(digest)

    def found(self) -> Iterator[Found]:
        """See `Objects`."""
        return self.inner.found()

    def sweep(self, found: Found) -> None:
        """See `Objects`."""
        self.inner.sweep(found)
