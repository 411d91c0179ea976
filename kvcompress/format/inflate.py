"""Deflate streams with a limit on their content.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import zlib
from typing import Any

from kvcompress.errors import FormatError


def inflated(data: bytes, most_bytes: int, what: str, stream: Any = None) -> bytes:
    """Return what a zlib stream holds that is all of `data`.

    Args:
        data: The stream, and nothing behind it.
        most_bytes: No more is decompressed.
        what: Names the data in errors.
        stream: `zlib.decompressobj` of another kind than the plain one.

    Raises:
        FormatError: It is damaged, holds more, or does not end with its data.
    """
    inflate = zlib.decompressobj() if stream is None else stream
    try:
        content: bytes = inflate.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise FormatError(f"{what} cannot be decompressed ({error})") from error
    if len(content) > most_bytes:
        raise FormatError(f"{what} holds more than {most_bytes} bytes")
    if not inflate.eof or inflate.unused_data:
        raise FormatError(f"{what} does not end with its data")
    return content
