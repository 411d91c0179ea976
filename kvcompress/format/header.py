"""The header of version 2 as bytes: JSON, deflated with a preset dictionary, with the hashes taken out.

Hashes are most of a header; nothing compresses them, but bytes are half of hexadecimal digits. What else a header says
is nearly the same in every file. A TinyVAE file of 1,024 tokens has a header of 222 bytes instead of 647.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import re
import zlib

from kvcompress.errors import FormatError
from kvcompress.format.atomic import PathLike

DICTIONARY = (
    b'"unlike":true,"stored":"int8","certificate":{"kl_nats":0.00,"max_kl_nats":0.0,"tail_tokens":"shapes":[['
    b'"plan":"recompute_layers":["known",32,\x01],["exact",,\x01],["offsets",,\x01]'
    b'"settings":{"size_ratio":"quality":"usable","high","rate":'
    b'{"codec":"lossless","codec_fingerprint":"","model":{"config":\x02,"rope":\x02,"tokenizer":null,"weights":\x02},'
    b'"model_name":"","raw_bytes":,"sections":[["tokens",,\x01],["origin",,\x01],["positions",,\x01],["cache",,\x01],'
    b'["codes",,\x01],["scales",,\x01]],"settings":{},"tokens":'
    b'{"codec":"int8","codec":"tinyvae","codec_fingerprint":\x04,"model":{"config":\x02,"rope":\x02,"tokenizer":\x02,'
    b'"weights":\x02},"model_name":"","raw_bytes":,"sections":[["tokens",,\x01],["origin",32,\x01],'
    b'["latents.1",["latents.0",,\x01]],"settings":{"quality":"transparent","rate":},"tokens":1024}'
)
"""What a header may copy from; part of version 2 of the format, so it never changes."""

_HASH_STEP_BYTES = 8
_HASHES = re.compile(rb'"((?:[0-9a-f]{16}){1,4})"')
_MARKS = re.compile(rb"[\x01-\x04]")


def pack_header(text: bytes) -> bytes:
    """Return JSON without control characters as a raw deflate stream and the hashes that were taken out of it.

    Args:
        text: Canonical JSON. A string of 16, 32, 48 or 64 lower-case hexadecimal digits becomes one byte 1 to 4.
    """
    hashes: list[bytes] = []

    def take(found: re.Match[bytes]) -> bytes:
        hashes.append(bytes.fromhex(found[1].decode()))
        return bytes([len(hashes[-1]) // _HASH_STEP_BYTES])

    marked = _HASHES.sub(take, text)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=DICTIONARY)
    return b"".join([deflate.compress(marked), deflate.flush(), *hashes])


def unpack_header(data: bytes, most_bytes: int, path: PathLike | None = None, offset: int | None = None) -> bytes:
    """Return the JSON text of at most `most_bytes` bytes; the inverse of `pack_header`.

    Raises:
        FormatError: The stream is damaged or inflates to more, or the hashes are not as many as the text names.
    """
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=DICTIONARY)
    try:
        marked = inflate.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise FormatError(f"the header cannot be decompressed ({error})", path=path, offset=offset) from error
    hashes, taken = inflate.unused_data, 0
    text_bytes = len(marked) + sum(16 * mark[0][0] + 1 for mark in _MARKS.finditer(marked))
    if max(text_bytes, len(marked)) > most_bytes:
        raise FormatError(f"the header holds more than {most_bytes} bytes", path=path, offset=offset)
    if not inflate.eof:
        raise FormatError("the header does not end with its data", path=path, offset=offset)

    def put(found: re.Match[bytes]) -> bytes:
        nonlocal taken
        start, taken = taken, taken + _HASH_STEP_BYTES * found[0][0]
        return b'"%s"' % hashes[start:taken].hex().encode()

    text = _MARKS.sub(put, marked)
    if taken != len(hashes):
        what = f"the header names {taken} bytes of hashes and holds {len(hashes)}"
        raise FormatError(what, path=path, offset=offset)
    return text
