"""Laws of the section "tokens": any ids survive, the smaller stream is taken, hostile bytes end in a typed error."""

from __future__ import annotations

import contextlib
import lzma
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.errors import FormatError
from kvcompress.format.json_section import MAX_TOKENS
from kvcompress.format.token_ids import LZMA, LZMA_DICTIONARY_BYTES, pack_tokens, unpack_tokens
from kvcompress.format.zstd_frame import zstd_pack

DIALOGUE = [(token * token * 31 + token // 7) % 257 + 300 * (token % 3) for token in list(range(150)) * 2]


def lzma_stream(content: bytes, width: int) -> bytes:
    """Return the stream that the specification describes, with another encoder's choices."""
    lp = {1: 0, 2: 1, 3: 0, 4: 2, 5: 0, 6: 1, 7: 0, 8: 3}[width]
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 0, "lp": lp, "pb": 0, "mf": lzma.MF_HC3}]
    return lzma.compress(content, lzma.FORMAT_RAW, filters=filters)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([3, 8, 9, 16, 17, 24, 32, 40, 48, 56, 63]).flatmap(
        lambda bits: st.lists(st.integers(0, 2**bits - 1), max_size=60)
    )
)
def test_any_ids_survive(ids: list[int]) -> None:
    for repeats in (1, 9):
        token_ids = torch.tensor(ids * repeats, dtype=torch.int64)
        assert torch.equal(unpack_tokens(pack_tokens(token_ids), len(token_ids)), token_ids)


@pytest.mark.parametrize("width", range(1, 9))
def test_both_compressors_are_read_at_any_width(width: int) -> None:
    top = min(2 ** (8 * width), 2**63) - 1
    token_ids = torch.tensor([0, 1, top, 1, top] * 20)
    content = b"".join(int(token).to_bytes(width, "little") for token in token_ids)
    for section in (bytes([width]) + zstd_pack(content, 3), bytes([LZMA + width]) + lzma_stream(content, width)):
        assert torch.equal(unpack_tokens(section), token_ids)


def test_the_smaller_of_both_is_taken() -> None:
    dialogue = torch.tensor(DIALOGUE)
    content = dialogue.numpy().astype("<u2").tobytes()
    section = pack_tokens(dialogue)
    assert section[0] == LZMA + 2
    assert len(section) < 1 + len(zstd_pack(content, 19))
    assert pack_tokens(torch.tensor([7]))[0] == 1
    assert pack_tokens(torch.tensor([], dtype=torch.int64)) == b"\1"


def test_stream_cut_flipped_or_continued_is_refused() -> None:
    section, token_ids = pack_tokens(torch.tensor(DIALOGUE)), torch.tensor(DIALOGUE)
    for size in range(len(section)):
        with pytest.raises(FormatError, match="'tokens'"):
            unpack_tokens(section[:size])
    with pytest.raises(FormatError, match="end with its data"):
        unpack_tokens(section + b"\0")
    for bit in range(8 * len(section)):
        flipped = bytearray(section)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(FormatError):
            assert unpack_tokens(bytes(flipped), 4096).dtype == token_ids.dtype


@pytest.mark.parametrize("first", [0, 9, 15, 16, 25, 31, 33, 255])
def test_unknown_first_byte_is_refused(first: int) -> None:
    with pytest.raises(FormatError, match="width from 1 to 8"):
        unpack_tokens(bytes([first]) + pack_tokens(torch.tensor(DIALOGUE))[1:])


def test_lies_about_sizes_are_refused_before_they_are_allocated() -> None:
    bomb = lzma_stream(bytes(2 * 8_000_000), 2)
    assert len(bomb) < 4000
    for section, most, what in (
        (bytes([LZMA + 2]) + bomb, 1000, "more than 1000 tokens"),
        (bytes([2]) + zstd_pack(bytes(2 * 8_000_000), 3), 1000, "impossible size"),
        (bytes([LZMA + 2]) + lzma_stream(bytes(5), 2), 1000, "whole 2-byte integers"),
        (bytes([LZMA + 8]) + lzma_stream(b"\xff" * 40, 8), 1000, "beyond 63 bits"),
        (bytes([LZMA + 2]) + lzma_stream(b"", 2), 1000, "end with its data"),
    ):
        tracemalloc.start()
        with pytest.raises(FormatError, match=what):
            unpack_tokens(section, most)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < LZMA_DICTIONARY_BYTES + (1 << 18)
    with pytest.raises(FormatError, match=f"more than {MAX_TOKENS} tokens|impossible size"):
        unpack_tokens(bytes([LZMA + 1]) + lzma_stream(bytes(MAX_TOKENS + 1), 1), 1 << 60)
