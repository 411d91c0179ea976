"""Single zstd frames with a limit on their content, checked before memory is allocated."""

from __future__ import annotations

import zstandard

from kvcompress.errors import FormatError

# No zstd block is shorter than 4 bytes or decompresses to more than 128 KiB.
_BLOCK_BYTES, _BLOCK_CONTENT_BYTES = 4, 128 << 10


def zstd_pack(data: bytes, level: int) -> bytes:
    """Return one zstd frame that states its content size and carries no checksum; nothing at all for no data."""
    return zstandard.ZstdCompressor(level=level).compress(data) if data else b""


def most_content_bytes(frame_bytes: int) -> int:
    """Return the most that zstd frames of so many bytes in all can decompress to."""
    return frame_bytes // _BLOCK_BYTES * _BLOCK_CONTENT_BYTES


def zstd_unpack(frame: bytes, most_bytes: int, what: str) -> bytes:
    """Return the content of one zstd frame; the inverse of `zstd_pack`.

    Args:
        frame: The frame, and nothing behind it.
        most_bytes: Refuse a larger content before anything is allocated for it.
        what: Names the data in errors.

    Raises:
        FormatError: The frame is damaged, does not state its content size, or claims more than it can hold.
    """
    if not frame:
        return b""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 < size <= min(most_bytes, most_content_bytes(len(frame))):
            raise FormatError(f"{what}: the impossible size of {size} bytes")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise FormatError(f"{what}: cannot be decompressed ({error})") from error
    if len(data) != size:
        raise FormatError(f"{what}: {len(data)} bytes instead of {size}")
    return data
