"""Files of sessions, coded and raw, what stands beside them, and files of text that sessions are made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from eval.fuzz.mutate import bytes_changed, file_changed, json_text, safetensors_changed, zlib_json_changed
from eval.fuzz.subject import Subject, through
from kvcompress.codec.directory import load_codec
from kvcompress.codec.exact_tokens import with_exact
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.protocol import Codec
from kvcompress.codec.registry import codec_of
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions
from kvcompress.data.shards import Shards
from kvcompress.format.ans import encode_choices
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.format.positions import pack_positions, read_positions
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress.format.token_ids import pack_tokens
from kvcompress.prune.evidence.file import load_evidence, save_evidence
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.history import load_history
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin

TOKENS = 12


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


def session_subjects(directory: Path) -> list[Subject]:
    """Return the kinds of this module; files that must lie somewhere lie in a directory."""
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


def _snapshots(directory: Path, snapshot: KVSnapshot) -> list[Subject]:
    """Return the two kinds of safetensors files; their header is JSON behind its length."""
    save_raw(directory / "good.safetensors", snapshot, force=True)
    evidence = Evidence(snapshot, surprise=torch.ones(TOKENS), window_attention=(torch.ones(4, TOKENS),) * 2)
    save_evidence(directory / "good.evidence", evidence, force=True)
    raw, stored = (directory / "good.safetensors").read_bytes(), (directory / "good.evidence").read_bytes()
    place = directory / "case.safetensors"
    return [
        Subject("raw snapshot", partial(safetensors_changed, raw), partial(through, place, load_raw)),
        Subject(
            "evidence",
            partial(safetensors_changed, stored),
            partial(through, place, lambda path: load_evidence(path, snapshot)),
        ),
    ]


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
            partial(through, directory / "history.json", load_history),
        ),
        Subject(
            "sessions",
            partial(lines, session),
            partial(through, directory / "sessions.jsonl", lambda path: list(read_sessions(path))),
        ),
        Subject(
            "shard index",
            partial(lines, row),
            partial(through, directory / "index.jsonl", lambda path: Shards(path.parent)),
        ),
    ]
