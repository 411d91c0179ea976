"""Every kind of file that the package reads: a few small good ones, how they are changed, and who reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from eval.fuzz.mutate import bytes_changed, file_changed, json_text, zlib_json_changed
from kvcompress.codec.directory import load_codec
from kvcompress.codec.exact_tokens import with_exact
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.protocol import Codec
from kvcompress.codec.registry import codec_of
from kvcompress.codec.sound import require_buildable
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions
from kvcompress.data.shards import Shards
from kvcompress.format.ans import encode_choices
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.format.positions import pack_positions, read_positions
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress.format.token_ids import pack_tokens
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.prune.evidence.file import load_evidence, save_evidence
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.history import load_history
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin

TOKENS = 12


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of file.

    Attributes:
        name: Of the kind.
        change: Makes a case of chance.
        read: Reads it; raises `KVCompressError` where it is refused.
        intact: Nothing but these bytes may be accepted, where no checksum was made right again; empty where some may.
    """

    name: str
    change: Callable[[Random], bytes]
    read: Callable[[bytes], object]
    intact: tuple[bytes, ...] = ()


def small_snapshot() -> KVSnapshot:
    """Return a cache of two layers, of which the second lacks two tokens."""
    config = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 4096, "rope_parameters": {"rope_theta": 10000.0}}
    hashes = ModelFingerprint("c" * 64, "a" * 64, "e" * 64)
    kinds, turned = ("full_attention",) * 2, (True,) * 2
    origin = Origin(hashes, "llama", "tiny", config, "bfloat16", kinds, turned, TOKENS)
    layers = []
    for dropped in (0, 2):
        numbers = torch.arange(2 * (TOKENS - dropped) * 4).reshape(2, TOKENS - dropped, 4).to(torch.bfloat16)
        layers.append(LayerKV(numbers, numbers / 7, torch.arange(dropped, TOKENS)))
    return KVSnapshot(tuple(layers), torch.arange(TOKENS) * 97, origin)


def subjects(directory: Path) -> list[Subject]:
    """Return all kinds; files that must lie somewhere lie in a directory."""
    snapshot, golden = small_snapshot(), _tinyvae_files(load_codec())
    lossless, int8 = LosslessCodec().encode(snapshot), Int8Codec().encode(snapshot)
    exact = with_exact(int8, snapshot, torch.arange(TOKENS) % 3 == 0)
    files = [lossless, int8, exact, *golden]
    whole = tuple(map(to_bytes, files))
    return [
        Subject("kvz bytes", partial(_any_changed, whole), from_bytes, whole),
        *(_of_codec(f"kvz {one.codec} {number}", one, load_codec) for number, one in enumerate(files)),
        _positions(),
        *_snapshots(directory, snapshot),
        *_texts(directory),
        _codec_config(directory),
    ]


def _any_changed(files: tuple[bytes, ...], chance: Random) -> bytes:
    return bytes_changed(chance, chance.choice(files), files)


def _tinyvae_files(codec: TinyVAECodec) -> list[Encoded]:
    """Return sessions of the bundled model's shape: plain, with residual, and with offsets and dropped tokens."""
    origin = Origin.from_json(json.loads(codec.preset.origin))
    chance = torch.Generator().manual_seed(0)
    layers = []
    for shape in codec.shapes:
        sizes = (shape.key_size, shape.value_size)
        keys, values = (torch.randn(shape.heads, TOKENS, size, generator=chance) for size in sizes)
        layers.append(LayerKV(keys, values, torch.arange(TOKENS)))
    fields = {**origin.to_json(), "next_position": TOKENS}
    snapshot = KVSnapshot(tuple(layers), torch.arange(TOKENS) * 97, Origin.from_json(fields))
    dropped = [LayerKV(one.keys[:, 2:], one.values[:, 2:], one.positions[2:]) for one in layers]
    pruned = KVSnapshot(tuple(dropped), snapshot.token_ids, snapshot.origin)
    offsets = torch.arange(TOKENS) % 3 * 16 - 16
    return [
        codec.encode(snapshot, 60),
        codec.encode(snapshot, 90, residual_qp=100),
        codec.encode(pruned, 60, offsets=offsets),
    ]


def _of_codec(name: str, encoded: Encoded, learned: Callable[[], TinyVAECodec]) -> Subject:
    """Return the files of one codec whose checksums were made right again."""
    codec: Codec = learned() if encoded.codec == TinyVAECodec.kind else codec_of(encoded)
    preset = codec.preset.origin if isinstance(codec, TinyVAECodec) else b""
    packers: Mapping[str, Callable[..., bytes]] = {
        "origin": partial(zlib_json_changed, preset=preset),
        "positions": zlib_json_changed,
        "tokens": _tokens_changed,
        "offsets": _offsets_changed,
    }
    names = ("codec", "codec_fingerprint", "model_name", "tokens", "raw_bytes", "settings")
    fields = {field: getattr(encoded, field) for field in names}
    fields["model"] = {part: digest and digest[:32] for part, digest in encoded.model.items()}

    def change(chance: Random) -> bytes:
        return file_changed(chance, fields, encoded.sections, packers)

    def read(data: bytes) -> object:
        found = from_bytes(data)
        if isinstance(codec, TinyVAECodec):
            return codec.decode(found) if found.codec == codec.kind and "exact" not in found.sections else None
        return codec_of(found).decode(found) if found.codec != TinyVAECodec.kind else None

    return Subject(name, change, read)


def _tokens_changed(chance: Random, section: bytes) -> bytes:
    count = chance.choice((0, 1, TOKENS - 1, TOKENS, TOKENS, TOKENS, TOKENS + 1, 100_000))
    return pack_tokens(torch.tensor([chance.choice((0, 5, 4095, 4096, 2**31, 2**62))] * count, dtype=torch.int64))


def _offsets_changed(chance: Random, section: bytes) -> bytes:
    values = [chance.choice((-32768, -641, -640, -1, 0, 319, 320, 321, 32767)) for _ in range(TOKENS)]
    return encode_choices(np.array(values, np.int16))


def _positions() -> Subject:
    good = pack_positions([list(range(0, 400, 3)), list(range(400)), [0, 5, 9]])
    return Subject(
        "positions", lambda chance: zlib_json_changed(chance, good), lambda data: read_positions(data, 400, 3).build()
    )


def _through(path: Path, read: Callable[[Path], object], data: bytes) -> object:
    path.write_bytes(data)
    return read(path)


def _snapshots(directory: Path, snapshot: KVSnapshot) -> list[Subject]:
    """Return the two kinds of safetensors files; their header is JSON behind its length."""
    save_raw(directory / "good.safetensors", snapshot, force=True)
    evidence = Evidence(snapshot, surprise=torch.ones(TOKENS), window_attention=(torch.ones(4, TOKENS),) * 2)
    save_evidence(directory / "good.evidence", evidence, force=True)
    raw, stored = (directory / "good.safetensors").read_bytes(), (directory / "good.evidence").read_bytes()
    place = directory / "case.safetensors"
    return [
        Subject("raw snapshot", partial(_safetensors_changed, raw), partial(_through, place, load_raw)),
        Subject(
            "evidence",
            partial(_safetensors_changed, stored),
            partial(_through, place, lambda path: load_evidence(path, snapshot)),
        ),
    ]


def _safetensors_changed(data: bytes, chance: Random) -> bytes:
    if chance.random() < 0.3:
        return bytes_changed(chance, data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if chance.random() < 0.5 and "origin" in header["__metadata__"]:
        origin = json.loads(header["__metadata__"]["origin"])
        header["__metadata__"]["origin"] = json_text(chance, origin).decode(errors="replace")
        text = json.dumps(header).encode()
    else:
        text = json_text(chance, header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _texts(directory: Path) -> list[Subject]:
    """Return files of JSON and of JSON lines."""
    history = {"candidates": {"random": [4, 1, 0.5], "salience": [9, 9, 0.0]}}
    turns = [{"role": "user", "content": "hi", "time": 5.0}, {"role": "assistant", "content": "hello", "time": 6}]
    session = {"id": "a", "messages": turns, "facts": [{"value": "x"}], "category": "dialogue"}
    row = {
        "id": "a",
        "file": "good.safetensors",
        "tokens": 12,
        "continuation": [1, 2],
        "part": "fit",
        "gradients": None,
    }
    (directory / "shards.json").write_text("{}")

    def lines(value: Any, chance: Random) -> bytes:
        return b"\n".join([json.dumps(value).encode(), json_text(chance, value)])

    return [
        Subject(
            "history",
            lambda chance: json_text(chance, history),
            partial(_through, directory / "history.json", load_history),
        ),
        Subject(
            "sessions",
            partial(lines, session),
            partial(_through, directory / "sessions.jsonl", lambda path: list(read_sessions(path))),
        ),
        Subject(
            "shard index",
            partial(lines, row),
            partial(_through, directory / "index.jsonl", lambda path: Shards(path.parent)),
        ),
    ]


def _codec_config(directory: Path) -> Subject:
    source, place = find_checkpoint("reference-lm-tinyvae"), directory / "codec"
    place.mkdir(exist_ok=True)
    if not (place / "model.safetensors").exists():
        (place / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    config = json.loads((source / "config.json").read_text())
    small = {name: config[name] for name in ("groups", "shapes", "model")}

    def read(path: Path) -> None:
        require_buildable(path.parent)

    return Subject(
        "codec config", lambda chance: json_text(chance, small), partial(_through, place / "config.json", read)
    )
