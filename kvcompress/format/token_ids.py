"""The section "tokens": token ids as bytes, by the better of two general compressors.

```
byte 0    w, 1 to 8: then a zstd frame; 16 + w: then a raw LZMA stream. No ids: the byte alone
then      the ids as w-byte little-endian integers, compressed
```
Mean bytes of 64 dialogues, ids below 4,096:

```
                                256 tokens  1,024 tokens
zstd, level 19                         332           788
deflate, level 9, no wrapper           323           781
bz2                                    382           899
zstd of byte planes                    349           868
LZMA, lc 3, lp 0                       324           772
LZMA, lc 0, lp 0                       304           743
LZMA, lc 0, lp 1                       291           704   literals know which byte of an id they are
```
Whole integers beat byte planes because a repeated token or phrase is a repeated run of bytes. zstd stays for what LZMA
does not shrink and for files made earlier. Both decode a thousand ids in a fraction of a millisecond.
"""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvcompress.errors import FormatError
from kvcompress.format.json_section import MAX_TOKENS
from kvcompress.format.zstd_frame import zstd_pack, zstd_unpack

ZSTD_LEVEL = 19
"""The highest ordinary one: the section is small."""

LZMA = 16
"""Added to the width where the stream is LZMA."""

LZMA_DICTIONARY_BYTES = 1 << 20

_MOST_WIDTH = 8


def pack_tokens(token_ids: Tensor) -> bytes:
    """Return the section of token ids [N] int64: the fewest whole bytes that hold the largest of them, compressed."""
    largest = int(token_ids.max()) if token_ids.numel() else 0
    width = max(1, (largest.bit_length() + 7) // 8)
    ids = token_ids.detach().cpu().numpy().astype("<i8")
    content = ids.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    if not content:
        return bytes([width])
    by_zstd = bytes([width]) + zstd_pack(content, ZSTD_LEVEL)
    by_lzma = bytes([LZMA + width]) + lzma.compress(content, lzma.FORMAT_RAW, filters=_filters(width))
    return min(by_zstd, by_lzma, key=len)


def unpack_tokens(data: bytes, most_tokens: int = MAX_TOKENS) -> Tensor:
    """Return the token ids [N] int64 of a section; nothing larger than `most_tokens` of them is decompressed.

    Raises:
        FormatError: The section is damaged, or holds more tokens.
    """
    width, by_lzma = (data[0] % LZMA, data[0] // LZMA) if data else (0, 0)
    if not 1 <= width <= _MOST_WIDTH or by_lzma > 1:
        raise FormatError("the section 'tokens' does not begin with a width from 1 to 8, or 16 more")
    unpack = _lzma_unpack if by_lzma else _zstd_unpack_ids
    content = unpack(data[1:], min(most_tokens, MAX_TOKENS) * width, width)
    if len(content) % width:
        raise FormatError(f"the section 'tokens' does not hold whole {width}-byte integers")
    ids: npt.NDArray[np.uint8] = np.zeros((len(content) // width, 8), dtype=np.uint8)
    ids[:, :width] = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
    token_ids = torch.from_numpy(ids.reshape(-1).view("<i8").astype(np.int64))
    if token_ids.numel() and int(token_ids.min()) < 0:
        raise FormatError("the section 'tokens' holds an id beyond 63 bits")
    return token_ids


def _filters(width: int) -> list[dict[str, Any]]:
    """Return the parameters of the raw LZMA stream; lp is the number of times that 2 divides the width."""
    lp = (width & -width).bit_length() - 1
    return [{"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": LZMA_DICTIONARY_BYTES, "lc": 0, "lp": lp, "pb": 0}]


def _lzma_unpack(stream: bytes, most_bytes: int, width: int) -> bytes:
    inflate = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(width))
    try:
        content = inflate.decompress(stream, most_bytes + 1)
    except (lzma.LZMAError, EOFError, MemoryError) as error:
        raise FormatError(f"the section 'tokens': cannot be decompressed ({error})") from error
    if len(content) > most_bytes:
        raise FormatError(f"the section 'tokens' holds more than {most_bytes // width} tokens")
    if not inflate.eof or inflate.unused_data or not content:
        raise FormatError("the section 'tokens' does not end with its data")
    return content


def _zstd_unpack_ids(frame: bytes, most_bytes: int, width: int) -> bytes:
    return zstd_unpack(frame, most_bytes, "the section 'tokens'")
