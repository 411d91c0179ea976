"""Files that lie behind valid checksums: refused in one line, quickly, and within the memory that the user allows."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.codec.directory import load_codec, load_tinyvae
from kvcompress.codec.facts import read_facts
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.registry import load_snapshot
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions
from kvcompress.errors import (
    CheckpointError,
    FormatError,
    InputError,
    KVCompressError,
    MemoryLimitError,
    MismatchError,
    shown,
)
from kvcompress.format.ans import decode_choices, encode_choices
from kvcompress.format.container import Encoded, from_bytes, load, read_header, save, to_bytes
from kvcompress.format.json_section import pack_json, pack_origin, unpack_origin
from kvcompress.format.limits import max_memory_bytes, memory_limit, parse_bytes
from kvcompress.format.origin import origin_of_json, require_possible_config
from kvcompress.format.positions import read_positions
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress.format.reader import Reader
from kvcompress.format.strict_json import MOST_DEPTH, MOST_LINE_BYTES, parse_json, read_json_lines
from kvcompress.format.token_ids import pack_tokens
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.prune.history import load_history
from kvcompress.prune.table import load_table
from tests.format.examples import make_origin, make_snapshot
from tests.format.make_golden import GOLDEN
from tests.format.test_container import sealed

QUICK_SECONDS = 5.0
"""Of the processor. Generous: what is refused at once takes milliseconds, or the time to decompress what is bounded."""


@pytest.fixture(scope="module")
def codec() -> TinyVAECodec:
    return load_codec()


@pytest.fixture(scope="module")
def golden() -> Encoded:
    return load(GOLDEN / "tinyvae.kvz")


def altered(encoded: Encoded, codec: TinyVAECodec, change: Any) -> Encoded:
    """Return a file whose origin was changed in place."""
    origin = unpack_origin(encoded.sections["origin"], codec.preset.origin)
    change(origin)
    return replace(encoded, sections={**encoded.sections, "origin": pack_origin(origin, codec.preset.origin)})


def prior_only(golden: Encoded, codec: TinyVAECodec, tokens: int) -> Encoded:
    """Return a file of tokens that are all the prior's guess: it costs a few hundred bytes, however many they are."""
    sections = {
        "tokens": pack_tokens(torch.zeros(tokens, dtype=torch.int64)),
        "origin": golden.sections["origin"],
        "latents.0": bytes(4),
        "offsets": encode_choices(np.full(tokens, -640, np.int16)),
    }
    origin = unpack_origin(golden.sections["origin"], codec.preset.origin) | {"next_position": tokens}
    sections["origin"] = pack_origin(origin, codec.preset.origin)
    raw_bytes = 2 * tokens * sum(shape.channels for shape in codec.shapes)
    return replace(golden, tokens=tokens, raw_bytes=raw_bytes, sections=sections)


def refused_at_once(kind: type[KVCompressError], what: str, call: Any) -> KVCompressError:
    start = time.process_time()
    with pytest.raises(kind, match=what) as caught:
        call()
    assert time.process_time() - start < QUICK_SECONDS
    assert "\n" not in str(caught.value)
    return caught.value


def test_token_beyond_the_vocabulary_is_refused(codec: TinyVAECodec, golden: Encoded) -> None:
    for beyond in (4096, 2**40, 2**63 - 1):
        ids = torch.zeros(golden.tokens, dtype=torch.int64)
        ids[3] = beyond
        bad = replace(golden, sections={**golden.sections, "tokens": pack_tokens(ids)})
        refused_at_once(
            FormatError, f"token id {beyond} lies outside the vocabulary of 4096", lambda b=bad: codec.decode(b)
        )


def test_token_beyond_the_vocabulary_is_refused_without_a_learned_codec_too(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    config = {"vocab_size": 30_000, "image_token_id": 31_000}
    for largest, fine in ((29_999, True), (30_000, True), (31_000, True), (31_001, False)):
        ids = torch.tensor([largest, 1, 2, 3, 4])
        one = replace(snapshot, token_ids=ids, origin=replace(snapshot.origin, config=config))
        save_raw(tmp_path / f"{largest}.safetensors", one)
        if fine:
            assert int(load_raw(tmp_path / f"{largest}.safetensors").token_ids[0]) == largest
            LosslessCodec().decode(LosslessCodec().encode(one))
            continue
        with pytest.raises(FormatError, match="outside the vocabulary of 30000"):
            load_raw(tmp_path / f"{largest}.safetensors")
        with pytest.raises(InputError, match="outside the vocabulary of 30000"):
            LosslessCodec().encode(one)


def test_few_bytes_of_many_tokens_are_held_to_the_limit(codec: TinyVAECodec, golden: Encoded, tmp_path: Path) -> None:
    path = tmp_path / "long.kvz"
    save(path, prior_only(golden, codec, 200_000))
    assert path.stat().st_size < 1000
    told = refused_at_once(
        MemoryLimitError,
        r"200,000 tokens needs about .* GB .* limit of 1 GB",
        lambda: load_snapshot(path, max_memory="1GB"),
    )
    assert "--max-memory" in str(told)
    with memory_limit(10_000_000), pytest.raises(MemoryLimitError, match="limit of 10 MB"):
        codec.decode(load(path))
    few = codec.decode(prior_only(golden, codec, 2000))
    assert few.tokens == 2000
    huge = prior_only(golden, codec, 1 << 24)
    refused_at_once(MemoryLimitError, "16,777,216 tokens", lambda: codec.decode(huge))


MEASURED = """
import sys
from kvcompress.codec.directory import load_codec
from kvcompress.codec.memory import decoding_bytes
from kvcompress.format.container import load
from kvcompress.format.limits import memory_limit

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

codec, encoded = load_codec(), load(sys.argv[1])
held = [encoded.tokens] * len(codec.shapes)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
decoded = codec.decode(encoded)
taken = status("VmHWM") - before
print(taken, decoding_bytes(codec, encoded, held) + 2 * encoded.raw_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_decoding_takes_no_more_memory_than_it_said(codec: TinyVAECodec, golden: Encoded, tmp_path: Path) -> None:
    save(tmp_path / "long.kvz", prior_only(golden, codec, 6000))
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "long.kvz")],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    taken, foreseen = map(int, told.split())
    assert taken < foreseen + 32_000_000
    assert foreseen < 4 * taken


def bitmaps(lists: int, digits: int) -> bytes:
    forms = [f"{index + 1:x}" + "f" * digits for index in range(lists)]
    return pack_json({"layers": list(range(lists)), "lists": forms}, 64 << 20, "positions")


def test_bitmap_of_many_times_its_bytes_is_refused_at_once(codec: TinyVAECodec, golden: Encoded) -> None:
    section = bitmaps(6, 4_000_000)
    assert len(section) < 70_000
    refused_at_once(FormatError, "more than 33554432 positions", lambda: read_positions(section))
    for tokens in (golden.tokens, 16_000_004):
        bad = prior_only(golden, codec, tokens)
        bad = replace(bad, sections={**bad.sections, "positions": section})
        refused_at_once(KVCompressError, "bitmap|positions|memory", lambda b=bad: codec.decode(b))
    snapshot = make_snapshot(shapes=((0, 4, 4), (0, 4, 4)))
    free = LosslessCodec().encode(snapshot)  # no heads: tokens cost it nothing
    ids = torch.zeros(16_000_004, dtype=torch.int64)
    sections = {**free.sections, "tokens": pack_tokens(ids), "positions": bitmaps(2, 4_000_000)}
    with memory_limit("500MB"):
        lie = replace(free, tokens=16_000_004, sections=sections)
        refused_at_once(MemoryLimitError, "16,000,004 tokens", lambda: LosslessCodec().decode(lie))


def test_runs_by_the_million_are_refused_before_they_are_read() -> None:
    text = b'{"layers":[0],"lists":[[' + b",".join(b"[%d,1]" % (2 * at) for at in range(1_000_000)) + b"]]}"
    section = zlib.compress(text)
    tracemalloc.start()
    refused_at_once(FormatError, "more than .* values", lambda: read_positions(section, 1000, 1))
    assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    tracemalloc.stop()
    with memory_limit("100MB"):
        refused_at_once(MemoryLimitError, "positions", lambda: read_positions(section))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 1_000_000_000),
        ("num_labels", 1_000_000_000),
        ("num_attention_heads", 10**12),
        ("head_dim", 10**10),
        ("n_layer", 10**9),
        ("partial_rotary_factor", 1e9),
        ("max_position_embeddings", 10**18),
        ("vocab_size", 10**15),
        ("text_config", {"vision": [{"num_hidden_layers": 1_000_000_000}]}),
        ("num_hidden_layers", 1),
    ],
)
def test_config_numbers_out_of_all_proportion_are_refused_at_once(
    codec: TinyVAECodec, golden: Encoded, key: str, value: Any, tmp_path: Path
) -> None:
    bad = altered(golden, codec, lambda origin: origin["config"].update({key: value}))
    refused_at_once(FormatError, "configuration says", lambda: codec.decode(bad))
    snapshot = make_snapshot()
    config = {**snapshot.origin.config, key: value}
    save_raw(tmp_path / "a.safetensors", replace(snapshot, origin=replace(snapshot.origin, config=config)))
    refused_at_once(FormatError, "a.safetensors.*configuration says", lambda: load_raw(tmp_path / "a.safetensors"))


def test_config_numbers_of_real_models_are_believed() -> None:
    for name in ("reference-lm-tinyvae", "smollm2-135m-instruct-tinyvae"):
        require_possible_config(load_codec(name).config_json()["origin"]["config"])
    require_possible_config(
        {"max_position_embeddings": 10_485_760, "vocab_size": 262_144, "rope_theta": 1e9, "seed": 10**12}
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda origin: origin["config"]["rope_parameters"].update(rope_theta=500_000.0), "rope_parameters.rope_theta"),
        (lambda origin: origin["config"].update(rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling"),
        (lambda origin: origin["config"].pop("rope_parameters"), "rope_parameters"),
        (lambda origin: origin["config"].update(head_dim=16), "head_dim"),
        (lambda origin: origin["config"].update(model_type="gpt_neox"), "model_type"),
        (lambda origin: origin.update(rope_layers=[False] * 6), "rope_layers"),
        (lambda origin: origin.update(layer_kinds=["sliding_attention"] * 6), "layer_kinds"),
    ],
)
def test_what_a_file_says_of_its_model_is_what_its_codec_knows(
    codec: TinyVAECodec, golden: Encoded, change: Any, named: str
) -> None:
    bad = altered(golden, codec, change)
    refused_at_once(MismatchError, named.replace(".", r"\."), lambda: codec.decode(bad))


def test_special_tokens_may_differ(codec: TinyVAECodec, golden: Encoded) -> None:
    other = altered(golden, codec, lambda origin: origin["config"].update(pad_token_id=7))
    assert torch.equal(codec.decode(other).layers[0].keys, codec.decode(golden).layers[0].keys)


def test_streams_that_end_in_a_zero_word_are_refused(codec: TinyVAECodec, golden: Encoded) -> None:
    for words in (bytes(4), b"\1\0\0\0" + bytes(4), bytes(8)):
        bad = replace(golden, sections={**golden.sections, "latents.0": words + bytes(4)})
        refused_at_once(FormatError, "zero word", lambda b=bad: codec.decode(b))
        choices = struct.pack("<BhhII", 2, -3, 5, 8, 8) + words
        refused_at_once(FormatError, "zero word", lambda c=choices: decode_choices(c, 16))


@pytest.mark.parametrize("name", ["offsets", "outliers"])
@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=40))
def test_noise_in_optional_sections_is_refused(codec: TinyVAECodec, golden: Encoded, name: str, noise: bytes) -> None:
    with pytest.raises(FormatError):
        codec.decode(replace(golden, sections={**golden.sections, name: noise}))


def test_raw_size_is_what_the_layers_hold(codec: TinyVAECodec, golden: Encoded) -> None:
    for raw_bytes in (0, golden.raw_bytes - 2, golden.raw_bytes + 2):
        with pytest.raises(FormatError, match="raw bytes"):
            codec.decode(replace(golden, raw_bytes=raw_bytes))
    with pytest.raises(MemoryLimitError):
        codec.decode(replace(golden, raw_bytes=2**53 - 1))


NUMBERS = ["9" * 400, "-" + "9" * 400, "1e999", "NaN", "Infinity", "9" * 5000]


@pytest.mark.parametrize("number", NUMBERS)
def test_number_that_no_float_holds_is_refused_wherever_it_stands(number: str, tmp_path: Path) -> None:
    text = '{"codec":"int8","codec_fingerprint":"","model":{},"model_name":"","raw_bytes":0,"sections":[],"settings":'
    text += '{"certificate":{"kl_nats":NUMBER,"tail_tokens":1,"max_kl_nats":1}},"tokens":0}'.replace("NUMBER", number)
    (tmp_path / "a.kvz").write_bytes(sealed(text.encode(), b"", version=1))
    refused_at_once(FormatError, "not valid JSON", lambda: read_header(tmp_path / "a.kvz"))
    (tmp_path / "history.json").write_text('{"candidates":{"a":[1,1,NUMBER]}}'.replace("NUMBER", number))
    refused_at_once(InputError, "no history", lambda: load_history(tmp_path / "history.json"))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * (MOST_DEPTH + 1) + b"1" + b"}" * (MOST_DEPTH + 1),
        b'{"a":1,"a":2}',
        b'"\\ud83d"',
        b'{"\\udc00":1}',
        b"[" + b"[]," * 400_000 + b"1]",
        b"\xef\xbb\xbf1",
        b"",
        b"1 2",
    ],
    ids=["deep list", "deeper than allowed", "twice", "surrogate", "surrogate key", "many", "mark", "empty", "two"],
)
def test_json_that_is_not_strict_is_refused(text: bytes, tmp_path: Path) -> None:
    refused_at_once(FormatError, "not valid JSON", lambda: parse_json(text, "it"))
    (tmp_path / "lines").write_bytes(b'{"fine":1}\n\n' + text + b"\n")
    if text:
        refused_at_once(FormatError, "line 3", lambda: list(read_json_lines(tmp_path / "lines", "a row")))


def test_lines_have_a_greatest_length(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'{"a":1}\n"' + b"x" * 100 + b'"\n')
    with pytest.raises(FormatError, match="line 2 is longer than 50 bytes"):
        list(read_json_lines(tmp_path / "lines", "a row", 50))


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_json_that_is_strict_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), "it") == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.data())
def test_reader_gives_each_byte_once_and_none_that_is_not_there(data: bytes, draws: st.DataObject) -> None:
    reader, taken = Reader(data, "it"), b""
    for _ in range(draws.draw(st.integers(0, 6))):
        kind = draws.draw(st.sampled_from(["take", "u8", "u32", "numbers", "block", "inflated", "scales"]))
        count, before = draws.draw(st.integers(0, 2**62)), reader.offset
        calls: dict[str, Any] = {
            "take": lambda n=count: reader.take(n % 100), "u8": reader.u8, "u32": reader.u32,
            "numbers": lambda n=count: reader.numbers("<u2", n), "block": reader.block,
            "inflated": lambda: reader.inflated_block(64), "scales": lambda n=count: reader.scales(n),
        }  # fmt: skip
        with contextlib.suppress(FormatError):
            calls[kind]()
        assert before <= reader.offset <= len(data)
        taken += data[before : reader.offset]
    assert taken + reader.rest() == data
    reader.require_end()


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text())
def test_errors_are_one_printable_line_whatever_they_name(what: str, path: str) -> None:
    for error in (InputError(what, what, path=path), FormatError(what, offset=3), MismatchError(what, what, what)):
        assert str(error).isprintable()
    assert shown("naïve 漢字") == "naïve 漢字"
    assert shown("\x1b[2J\u202e\ud83d\n") == r"\x1b[2J\u202e\ud83d\n"
    assert len(str(InputError("x" * 10**6, "y" * 10**6, path="z" * 10**6))) < 6100


def run_ascii(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line where the terminal knows ASCII only."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "kvcompress", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, env=environment)


def test_names_are_shown_on_any_terminal(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    encoded = LosslessCodec().encode(replace(snapshot, origin=replace(snapshot.origin, model_name="modèle-漢字")))
    encoded = replace(encoded, settings={"note": "\x1b]0;owned\x07\x9b2J", "\x1b[2J": 1})
    save(tmp_path / "é.kvz", encoded)
    for arguments in (
        ("inspect",),
        ("inspect", "--json"),
        ("verify",),
        ("decode", "-o", str(tmp_path / "raw.safetensors")),
    ):
        done = run_ascii(arguments[0], str(tmp_path / "é.kvz"), *arguments[1:])
        assert done.returncode == 0, done.stderr
        assert all(32 <= byte < 127 or byte == 10 for byte in done.stdout), done.stdout
    broken = tmp_path / "\x1b[2Jü.kvz"
    broken.write_bytes(to_bytes(encoded)[:-1])
    done = run_ascii("inspect", str(broken))
    assert done.returncode == 1
    assert b"\x1b" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_origin_that_names_an_escape_sequence_is_shown_escaped() -> None:
    with pytest.raises(FormatError) as caught:
        origin_of_json(make_origin(1, "float32", 2).to_json() | {"layer_kinds": ["\x1b[2J"]})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "found"),
    [("4GB", 4 * 10**9), ("512 MB", 512 * 10**6), ("1.5GiB", 3 << 29), ("4000000000", 4 * 10**9), (7, 7), ("2k", 2000)],
)
def test_limits_are_given_as_people_say_them(size: str | int, found: int) -> None:
    assert parse_bytes(size) == found
    with memory_limit(size):
        assert max_memory_bytes() == found
    assert max_memory_bytes() == 4 * 10**9


@pytest.mark.parametrize(
    "size",
    [
        "",
        "GB",
        "-1",
        "0",
        0,
        -5,
        "1e9",
        "4 zebras",
        "nan",
        "1GBB",
        "٣GB",
        True,
        1.5,
        pytest.param(-(10**5000), id="5000 digits"),
    ],
)
def test_limits_that_are_none_are_refused(size: Any) -> None:
    with pytest.raises(InputError, match="amount of memory"):
        parse_bytes(size)


def directory_with(tmp_path: Path, change: Any) -> Path:
    """Return a copy of the bundled codec whose configuration was changed in place."""
    source = find_checkpoint("reference-lm-tinyvae")
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["groups"][0]["config"].update(vocab_size=10**12),
        lambda config: config["groups"][0]["config"].update(vocab_size=10**30),
        lambda config: config["groups"][0]["config"].update(prior_layers=10**9),
        lambda config: config["groups"][0]["config"].update(prior_rank=10**9),
        lambda config: config["groups"][0]["config"].update(rank="many"),
        lambda config: config["groups"][0].update(layers=[0, 1, 2, 3, 4, 99]),
        lambda config: config["groups"][0].update(layers=[0] * 6),
        lambda config: config["groups"][0].update(known=[5]),
        lambda config: config["groups"][0].update(lower=[[0, 5]]),
        lambda config: config["shapes"].append([4, 32, 32]),
        lambda config: config["shapes"].__setitem__(0, [4, 10**9, 32]),
        lambda config: config["shapes"].__setitem__(0, [4, 31, 33]),
        lambda config: config.update(recompute_layers=10**9),
        lambda config: config.update(recompute_layers=-3),
        lambda config: config.update(groups={}),
        lambda config: config.update(model=None),
        lambda config: config.update(shared_table=[1]),
    ],
)
def test_codec_of_impossible_geometry_is_refused_at_once(tmp_path: Path, change: Any) -> None:
    directory = directory_with(tmp_path, change)
    refused_at_once(CheckpointError, str(tmp_path), lambda: load_tinyvae(directory))


def test_header_holds_no_file_larger_than_the_limit(tmp_path: Path) -> None:
    save(tmp_path / "a.kvz", LosslessCodec().encode(make_snapshot()))
    with memory_limit(100), pytest.raises(MemoryLimitError, match="reading the file"):
        load(tmp_path / "a.kvz")
    assert from_bytes((tmp_path / "a.kvz").read_bytes()).tokens == 5


@pytest.mark.parametrize("depth", [70, 400, 900, 10_000])
def test_sessions_nested_without_end_are_refused(depth: int, tmp_path: Path) -> None:
    inner = "[" * depth + "]" * depth
    (tmp_path / "a.jsonl").write_text('{"messages":[{"role":"user","content":"a","x":' + inner + "}]}\n")
    refused_at_once(FormatError, "line 1 is not JSON", lambda: list(read_sessions(tmp_path / "a.jsonl")))


def test_line_of_a_session_file_has_a_greatest_length(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"' + "a" * MOST_LINE_BYTES + '"}')
    refused_at_once(FormatError, "line 1 is longer", lambda: list(read_sessions(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    "text",
    [
        '{"groups":[],"shapes":[],"recompute_layers":Infinity}',
        '{"groups":[],"shapes":[],"recompute_layers":-3}',
        '{"groups":[],"shapes":' + "[" * 5000 + "]" * 5000 + "}",
        '{"groups":[],"shapes":[],"model":{},"fitted":{"fingerprint":NaN}}',
        '{"groups":[],"shapes":[],"model":{"weights":[1]}}',
        '{"groups":[],"shapes":[],"model":{},"promises":{"high":5}}',
    ],
)
def test_what_a_codec_says_of_itself_is_read_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    told = refused_at_once(CheckpointError, "cannot be read|damaged", lambda: read_facts(tmp_path))
    assert str(told).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "columns",
    [
        {"parts": {"a": ["x", "y"]}},
        {"parts": {"a": [10**400, 1]}},
        {"parts": {}, "anchors": [5, 6]},
        {"parts": {}, "anchors": [[5], [6]]},
        {"parts": {}, "text": [1, 2]},
        {"parts": [1]},
    ],
)
def test_table_of_a_plan_holds_numbers_and_texts(columns: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"tier": ["dropped", "dropped"], **columns}))
    tiers = torch.zeros(2, dtype=torch.int64)
    refused_at_once(InputError, "no table of a plan", lambda: load_table(tmp_path / "plan.json", tiers, [0, 0]))
    (tmp_path / "plan.json").write_text("[" * 9000)
    refused_at_once(InputError, "no table of a plan", lambda: load_table(tmp_path / "plan.json", tiers, [0, 0]))
