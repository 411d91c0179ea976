"""Laws of the `.kvz` file: byte for byte what the specification says, and any other bytes end in a typed error."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.errors import FormatError, InputError, IntegrityError, KVCompressError, MismatchError
from kvcompress.format.container import (
    MAGIC,
    MAX_HEADER_BYTES,
    Encoded,
    from_bytes,
    load,
    pack_origin,
    pack_positions,
    read_header,
    save,
    to_bytes,
    unpack_origin,
    unpack_positions,
    verify,
)
from kvcompress.format.header import DICTIONARY, pack_header, unpack_header
from kvcompress.format.json_section import MAX_LAYERS, MAX_ORIGIN_BYTES
from kvcompress.format.strict_json import canonical_json

TINY = Encoded(
    codec="demo",
    codec_fingerprint="",
    model={"config": "ab" * 16, "tokenizer": None},
    model_name="tiny",
    tokens=2,
    raw_bytes=64,
    settings={"rate": 3},
    sections={"a": b"one", "b": b""},
)
TINY_TEXT = (
    b'{"codec":"demo","codec_fingerprint":"","model":{"config":"abababababababababababababababab","tokenizer":null},'
    b'"model_name":"tiny","raw_bytes":64,"sections":[["a",3,"7692c3ad3540bb80"],["b",0,"e3b0c44298fc1c14"]],'
    b'"settings":{"rate":3},"tokens":2}'
)
TINY_DEFLATED = bytes.fromhex(
    "4304484a6a6e3e6909012dfed17d0b0a52541f9b99a0f93911e84188ff9294740c30fd0271b33192a38d6a01"
)
TINY_HASHES = bytes.fromhex("ab" * 16 + "7692c3ad3540bb80" + "e3b0c44298fc1c14")
TINY_BYTES = b"\x89KVZ\r\n\x1a\n\x02\x00\x00\x00\x4c\x00\x00\x00" + TINY_DEFLATED + TINY_HASHES
TINY_BYTES += hashlib.sha256(TINY_BYTES).digest() + b"one"
TINY_BYTES_1 = (
    b"\x89KVZ\r\n\x1a\n"
    b"\x01\x00\x00\x00"
    b"\x15\x01\x00\x00"
    b'{"codec":"demo","codec_fingerprint":"","model":{"config":"abababababababababababababababab","tokenizer":null},'
    b'"model_name":"tiny","raw_bytes":64,"sections":[["a",3,"7692c3ad3540bb803c020b3aee66cd88"],'
    b'["b",0,"e3b0c44298fc1c149afbf4c8996fb924"]],"settings":{"rate":3},"tokens":2}'
    b"\xefT\xa3\xc7\x18\x93\xee\xf5w\x87\xdf$\xbf\x8d\xc3\xb7\xfd\xf4L O\x9c\x12\xf1\nU!P\xfb/\x18\xb8"
    b"one"
)
SECTIONS_START = len(TINY_BYTES) - 3
DIGITS = {1: 32, 2: 16}


def sealed(header: bytes, sections: bytes = b"one", version: int = 2, length: int | None = None) -> bytes:
    """Return a file with valid checksums around any header."""
    head = struct.pack("<8sII", MAGIC, version, len(header) if length is None else length) + header
    return head + hashlib.sha256(head).digest() + sections


def in_header(text: bytes, version: int = 2) -> bytes:
    """Return the text of a header as a version holds it."""
    return text if version == 1 else pack_header(text)


def lying(version: int = 2, **changes: Any) -> bytes:
    """Return the tiny file with other fields in its header; a field of `...` is left out.

    Checksums are written as in version 1; in version 2 they are cut to half of their digits.
    """
    text = TINY_TEXT if version == 2 else TINY_BYTES_1[16:-35]
    header = {key: value for key, value in (json.loads(text) | changes).items() if value is not ...}
    for entry in header.get("sections", ()):
        if len(entry) == 3 and isinstance(entry, list):
            entry[2] = entry[2][: len(entry[2]) * DIGITS[version] // 32] if "sections" in changes else entry[2]
    return sealed(in_header(json.dumps(header).encode(), version), version=version)


def test_whole_file_is_these_bytes() -> None:
    assert from_bytes(TINY_BYTES) == TINY
    assert from_bytes(to_bytes(TINY)) == TINY
    # Which of several streams of the same text the writer makes is zlib's business, and zlib's may differ.
    body = to_bytes(TINY)[16 : -3 - 32]
    assert unpack_header(body, MAX_HEADER_BYTES) == TINY_TEXT
    assert body.endswith(TINY_HASHES)


def test_file_of_version_1_is_read_as_before() -> None:
    assert from_bytes(TINY_BYTES_1) == TINY


def test_specification_shows_this_header_and_the_dictionary() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_bytes()
    assert b"```json\n" + TINY_TEXT + b"\n```" in text
    assert b"```json\n" + TINY_BYTES_1[16:-35] + b"\n```" in text
    shown = re.findall(rb"```text\n(.*?)```", text, re.DOTALL)
    dictionaries = [b"".join(block.split(b"\n")) for block in shown if rb"\x04" in block]
    assert [one.decode("unicode_escape").encode("latin-1") for one in dictionaries] == [DICTIONARY]
    assert hashlib.sha256(DICTIONARY).hexdigest().encode() in text


def test_same_content_gives_same_bytes_in_any_order_of_fields() -> None:
    turned = replace(TINY, model=dict(reversed(TINY.model.items())))
    assert to_bytes(turned) == to_bytes(TINY)


names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40)
digests = st.none() | st.text("0123456789abcdef", max_size=32)
hexadecimal = st.sampled_from(["0" * 16, "a" * 17, "b" * 32, "c" * 48, "d" * 64, "e" * 80, '"' + "f" * 16, "A" * 16])
leaves = hexadecimal | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
settings_values = st.recursive(
    leaves | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)
encodeds = st.builds(
    Encoded,
    codec=names,
    codec_fingerprint=st.text("0123456789abcdef", max_size=64),
    model=st.dictionaries(names | hexadecimal, digests, max_size=5),
    model_name=names | st.just("") | hexadecimal,
    tokens=st.integers(0, 2**53 - 1),
    raw_bytes=st.integers(0, 2**53 - 1),
    settings=st.dictionaries(texts, settings_values, max_size=4),
    sections=st.dictionaries(names, st.binary(max_size=200), max_size=5),
)


@settings(max_examples=80, deadline=None)
@given(encodeds)
def test_encoded_survives_bytes(encoded: Encoded) -> None:
    data = to_bytes(encoded)
    found = from_bytes(data)
    assert found == encoded
    assert list(found.sections) == list(encoded.sections)
    assert to_bytes(found) == data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_end_in_a_typed_error(data: bytes, as_header: bool) -> None:
    with pytest.raises(FormatError):
        from_bytes(sealed(data) if as_header else MAGIC + data)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"])) | hexadecimal.map(lambda text: f'"{text}"'))
def test_any_text_without_control_characters_survives_the_header(text: str) -> None:
    assert unpack_header(pack_header(text.encode()), MAX_HEADER_BYTES) == text.encode()


def test_header_keeps_half_of_each_model_hash_and_stays_below_350_bytes(tmp_path: Path) -> None:
    parts = {part: digit * 64 for part, digit in zip(("config", "weights", "rope", "tokenizer"), "0123", strict=True)}
    blobs = {name: bytes(70_000) for name in ("tokens", "origin", "positions", "latents.0", "latents.1", "latents.2")}
    full = Encoded("tinyvae", "f" * 64, parts, "some-model-1B-instruct", 4096, 2**40, {"quality": "high"}, blobs)
    save(tmp_path / "a.kvz", full)
    header = read_header(tmp_path / "a.kvz")
    assert header.model == {part: digest[:32] for part, digest in parts.items()}
    assert header.codec_fingerprint == full.codec_fingerprint
    assert header.header_bytes < 350


def test_file_is_fully_covered_by_header_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "a.kvz"
    save(path, TINY)
    header = read_header(path)
    assert header.file_bytes == path.stat().st_size
    assert header.sections == tuple(
        (name, len(data), hashlib.sha256(data).hexdigest()[:16]) for name, data in TINY.sections.items()
    )
    assert load(path) == verify(path) == TINY


def test_header_is_read_without_the_sections(tmp_path: Path) -> None:
    path = tmp_path / "a.kvz"
    path.write_bytes(TINY_BYTES[:-1] + b"X")
    assert read_header(path).tokens == 2
    with pytest.raises(IntegrityError, match=r"a\.kvz: the checksum of the section 'a'.*byte 124"):
        load(path)


@pytest.mark.parametrize("whole", [TINY_BYTES_1, TINY_BYTES], ids=["version 1", "version 2"])
@pytest.mark.parametrize("read", [load, read_header])
def test_truncated_at_any_offset_is_refused(tmp_path: Path, read: Callable[[Path], object], whole: bytes) -> None:
    path = tmp_path / "cut.kvz"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError) as caught:
            read(path)
        assert not isinstance(caught.value, IntegrityError)
        assert str(caught.value).startswith(f"{path}: ")
        assert caught.value.offset == size or size == 0
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whole", [TINY_BYTES_1, TINY_BYTES], ids=["version 1", "version 2"])
def test_any_flipped_bit_is_refused(whole: bytes) -> None:
    for offset in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[offset] ^= 1 << bit
            with pytest.raises(FormatError) as caught:
                from_bytes(bytes(data), "x.kvz")
            if offset >= 16:
                assert isinstance(caught.value, IntegrityError)
                assert ("section 'a'" if offset >= len(whole) - 3 else "header") in caught.value.what


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tokens": ...}, "exactly the fields"),
        ({"more": 1}, "exactly the fields"),
        ({"tokens": -1}, "'tokens' must hold an integer"),
        ({"tokens": 2.0}, "'tokens' must hold an integer"),
        ({"tokens": True}, "'tokens' must hold an integer"),
        ({"tokens": "2"}, "'tokens' must hold an integer"),
        ({"raw_bytes": 2**53}, "'raw_bytes' must hold an integer"),
        ({"codec": None}, "'codec' must hold a printable text"),
        ({"codec": ""}, "'codec' must hold a printable text"),
        ({"codec": "x" * 256}, "'codec' must hold a printable text"),
        ({"model_name": "\x1b[2J"}, "'model_name' must hold a printable text"),
        ({"codec_fingerprint": 5}, "'codec_fingerprint' must hold"),
        ({"model": []}, "'model' is not an object"),
        ({"model": {"config": 5}}, "'model' must hold"),
        ({"model": {"config": "a" * 33}}, "longer than 32"),
        ({"settings": [1]}, "'settings' is not an object"),
        ({"settings": {"x": float("nan")}}, "not valid JSON"),
        ({"settings": {"x": "\ud800"}}, "not valid JSON"),
        ({"sections": {}}, "'sections' is not a list"),
        ({"sections": [["a", 3]]}, r"not \[name, bytes, checksum\]"),
        ({"sections": [["a", -3, "7" * 32]]}, "'sections' must hold an integer"),
        ({"sections": [["a", 3, "7" * 31]]}, r"not (32|16) hexadecimal digits"),
        ({"sections": [["a", 3, "7" * 34]]}, r"not (32|16) hexadecimal digits"),
        ({"sections": [["a", 3, "G" * 32]]}, r"not (32|16) hexadecimal digits"),
        ({"sections": [["a", 1, "7" * 32], ["a", 2, "7" * 32]]}, "'a' is listed twice"),
        ({"sections": [["a", 2, "7" * 32]]}, "1 bytes follow the end"),
        ({"sections": []}, "3 bytes follow the end"),
        ({"sections": [["a", 4, "7" * 32]]}, "cut off in the sections"),
    ],
)
@pytest.mark.parametrize("version", DIGITS)
def test_lie_in_the_header_is_refused(changes: dict[str, Any], what: str, version: int) -> None:
    with pytest.raises(FormatError, match=what) as caught:
        from_bytes(lying(version, **copy.deepcopy(changes)), "x.kvz")
    assert str(caught.value).startswith("x.kvz: ")
    assert caught.value.offset is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"codec":1e999}',
        b'{"codec":"a","codec":"a"}',
        b'{"codec":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"settings":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    ],
    ids=["empty", "list", "open", "word", "latin", "overflow", "twice", "long number", "deep list", "deep object"],
)
@pytest.mark.parametrize("version", DIGITS)
def test_header_that_is_no_json_object_is_refused(body: bytes, version: int) -> None:
    with pytest.raises(FormatError, match="JSON"):
        from_bytes(sealed(in_header(body, version), version=version))


def _deflated_header(text: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    return deflate.compress(text) + deflate.flush()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "does not end with its data"),
        (TINY_DEFLATED[:-1], "does not end with its data"),
        (b"\xff" + TINY_DEFLATED[1:], "cannot be decompressed"),
        (TINY_TEXT, "cannot be decompressed|does not end|JSON"),
        (TINY_DEFLATED, "32 bytes of hashes and holds 0"),
        (TINY_DEFLATED + TINY_HASHES[:-1], "32 bytes of hashes and holds 31"),
        (TINY_DEFLATED + TINY_HASHES + b"\0", "32 bytes of hashes and holds 33"),
        (_deflated_header(b" " * MAX_HEADER_BYTES), "not valid JSON"),
        (_deflated_header(b" " * (MAX_HEADER_BYTES + 1)), "more than 1048576 bytes"),
        (_deflated_header(b"\x04" * (MAX_HEADER_BYTES // 66 + 1)), "more than 1048576 bytes"),
        (_deflated_header(b'{"codec":\x05}'), "not valid JSON"),
        (_deflated_header(b"\x01") + bytes(8), "no JSON object"),
    ],
)
def test_header_that_bursts_or_breaks_is_refused(body: bytes, what: str) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError, match=what) as caught:
        from_bytes(sealed(body), "x.kvz")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * MAX_HEADER_BYTES
    assert str(caught.value).startswith("x.kvz: ")


def test_header_of_version_2_is_refused_when_cut_or_flipped_behind_a_valid_checksum() -> None:
    body = TINY_DEFLATED + TINY_HASHES
    for size in range(len(body)):
        with pytest.raises(FormatError):
            from_bytes(sealed(body[:size]))
    for bit in range(8 * len(body)):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(FormatError):
            assert from_bytes(sealed(bytes(flipped))) != TINY


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 something else", "not a .kvz file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\0\0\0\0\0", "not a .kvz file"),
        (TINY_BYTES + b"\0", "1 bytes follow the end"),
        (sealed(b"{}", version=3), "version 3 of the format is not supported.*Upgrade kvcompress"),
        (sealed(b"{}", version=0), "version 0 of the format is not supported"),
        (sealed(b"{}", length=0xFFFFFFFF), "header claims 4294967295 bytes"),
        (sealed(b"{}", length=MAX_HEADER_BYTES), "cut off in the header"),
    ],
)
def test_foreign_file_is_refused(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "x.kvz"
    path.write_bytes(data)
    for read in (load, read_header):
        with pytest.raises(FormatError, match=what):
            read(path)


def test_claimed_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.kvz"
    claims = [
        sealed(b"{}", length=MAX_HEADER_BYTES),
        *(lying(version, sections=[["a", 2**53 - 1, "7" * 32]]) for version in DIGITS),
        *(lying(version, sections=[[f"s{i}", 2**40, "7" * 32] for i in range(50)]) for version in DIGITS),
    ]
    for data in claims:
        path.write_bytes(data)
        tracemalloc.start()
        with pytest.raises(FormatError):
            load(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 1 << 19


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tokens": -1}, "'tokens' must hold an integer"),
        ({"codec": ""}, "'codec' must hold"),
        ({"model": {"config": "\x1b"}}, "'model' must hold"),
        ({"settings": {"x": float("inf")}}, "cannot be stored as JSON"),
        ({"settings": {"x": object()}}, "cannot be stored as JSON"),
        ({"settings": {"x": "a" * MAX_HEADER_BYTES}}, "the header has"),
        ({"settings": {"x": random.Random(0).randbytes(MAX_HEADER_BYTES // 2).hex()}}, "the header has"),
    ],
)
def test_what_cannot_be_read_is_not_written(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        save(tmp_path / "x.kvz", replace(TINY, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [load, read_header, verify])
def test_missing_file_and_directory_are_named(tmp_path: Path, read: Callable[[Any], object]) -> None:
    with pytest.raises(InputError, match=r"absent\.kvz: cannot be read: no such file"):
        read(tmp_path / "absent.kvz")
    with pytest.raises(InputError, match="it is a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        read("/dev/null")
    with pytest.raises(InputError, match="cannot be read"):
        read("a\0b")


def test_container_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, kvcompress.format.container; print(sorted({'torch', 'numpy', 'zstandard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", [{}, {"a": [1, None, "ü", 0.1], "b": {"c": True}}])
def test_origin_survives_packing(value: dict[str, Any]) -> None:
    assert unpack_origin(pack_origin(value)) == value
    assert pack_origin(dict(reversed(value.items()))) == pack_origin(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 200), unique=True, max_size=40).map(sorted), max_size=6))
def test_positions_survive_packing(positions: list[list[int]]) -> None:
    assert unpack_positions(pack_positions(positions)) == positions


def test_scattered_positions_cost_little_more_than_a_bit_a_token() -> None:
    scattered = [at for at in range(4000) if (at * 2_654_435_761) >> 7 & 1]
    assert len(pack_positions([scattered])) < 4000 / 8 + 80
    assert unpack_positions(pack_positions([scattered])) == [scattered]


def test_layers_of_the_same_positions_cost_almost_nothing() -> None:
    one, many = pack_positions([list(range(5000))]), pack_positions([list(range(5000))] * 80)
    assert len(many) < len(one) + 16


@pytest.mark.parametrize("positions", [[[1, 1]], [[2, 1]], [[-1, 0]], [[2**53]], [[0]] * (MAX_LAYERS + 1)])
def test_impossible_positions_are_not_written(positions: list[list[int]]) -> None:
    with pytest.raises(InputError, match="positions"):
        pack_positions(positions)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"layers": [0]},
        {"layers": 0, "lists": []},
        {"layers": [0], "lists": []},
        {"layers": [1], "lists": [[], []]},
        {"layers": [1, 0], "lists": [[[0, 1]], [[0, 2]]]},
        {"layers": [False], "lists": [[]]},
        {"layers": [], "lists": [[]]},
        {"layers": [0], "lists": [5]},
        {"layers": [0], "lists": [[5]]},
        {"layers": [0], "lists": [[[0, 0]]]},
        {"layers": [0], "lists": [[[0, -1]]]},
        {"layers": [0], "lists": [[[0, 1.5]]]},
        {"layers": [0], "lists": [[[-1, 1]]]},
        {"layers": [0], "lists": [[[0, 3], [2, 1]]]},
        {"layers": [0], "lists": [[[2**53, 1]]]},
        {"layers": [0], "lists": [[[0, 10**12]]]},
        {"layers": [[0]], "lists": [[]]},
        {"layers": [0], "lists": [""]},
        {"layers": [0], "lists": ["g1"]},
        {"layers": [0], "lists": ["F1"]},
        {"layers": [0], "lists": ["f0"]},
        {"layers": list(range(100)), "lists": [[[i, 1 << 24]] for i in range(100)]},
    ],
)
def test_lie_in_the_positions_is_refused_before_anything_is_built(value: Any) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError, match="'positions'"):
        unpack_positions(_deflated(value))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 19


def test_more_positions_than_tokens_are_refused() -> None:
    assert unpack_positions(pack_positions([[0, 1, 2]]), max_tokens=3) == [[0, 1, 2]]
    with pytest.raises(FormatError, match="more positions than the 2 tokens"):
        unpack_positions(pack_positions([[0, 1, 2]]), max_tokens=2)
    scattered = pack_positions([list(range(0, 400, 3))])
    assert unpack_positions(scattered, max_tokens=400) == [list(range(0, 400, 3))]
    with pytest.raises(FormatError, match="bitmap that is not of 40 tokens"):
        unpack_positions(scattered, max_tokens=40)


PRESET = canonical_json({"config": {"hidden_size": 64, "layers": list(range(40))}, "dtype": "float32", "next": 0})


@pytest.mark.parametrize("changes", [{}, {"next": 1024}, {"dtype": "bfloat16"}, {"config": {}}, {"more": ["ü"] * 300}])
def test_origin_survives_a_preset(changes: dict[str, Any]) -> None:
    value = json.loads(PRESET) | changes
    packed = pack_origin(value, PRESET)
    assert unpack_origin(packed, PRESET) == value
    assert len(packed) < len(pack_origin(value))


def test_origin_equal_to_its_preset_costs_almost_nothing() -> None:
    assert len(pack_origin(json.loads(PRESET), PRESET)) <= 24


def test_origin_without_a_preset_is_read_by_a_codec_that_has_one() -> None:
    assert unpack_origin(pack_origin({"a": 1}), PRESET) == {"a": 1}


def test_origin_of_another_preset_is_refused_and_both_are_named() -> None:
    packed = pack_origin({"a": 1}, PRESET)
    for preset in (b"", b"{}", PRESET[:-1] + b" "):
        with pytest.raises(MismatchError, match=f"{zlib.adler32(PRESET):08x}") as caught:
            unpack_origin(packed, preset)
        assert (f"{zlib.adler32(preset):08x}" if preset else "none") in str(caught.value)


def test_origin_with_a_preset_that_bursts_or_breaks_is_refused() -> None:
    good = pack_origin(json.loads(PRESET), PRESET)
    deflate = zlib.compressobj(9, zdict=PRESET)
    bomb = deflate.compress(b" " * (MAX_ORIGIN_BYTES + 1)) + deflate.flush()
    assert len(bomb) < 5000
    with pytest.raises(FormatError, match="more than"):
        unpack_origin(bomb, PRESET)
    for size in range(len(good)):
        with pytest.raises(KVCompressError):
            unpack_origin(good[:size], PRESET)
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(KVCompressError):
            assert unpack_origin(bytes(flipped), PRESET) == json.loads(
                PRESET
            )  # bits of the zlib header that say nothing


def test_origin_that_bursts_or_breaks_is_refused() -> None:
    good = pack_origin({"a": 1})
    bomb = zlib.compress(b" " * (MAX_ORIGIN_BYTES + 1), 9)
    assert len(bomb) < 5000
    for data in (b"", b"x", good[:-1], good + b"\0", bomb, _deflated([]), _deflated_text(b'{"a":NaN}')):
        with pytest.raises(FormatError, match="'origin'"):
            unpack_origin(data)
    for size in range(len(good)):
        with pytest.raises(KVCompressError):
            unpack_origin(good[:size])


def _deflated(value: Any) -> bytes:
    return _deflated_text(canonical_json(value))


def _deflated_text(text: bytes) -> bytes:
    return zlib.compress(text)
