"""Headers of GGUF files that lie: refused before a reader that believes them is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.fuzz.gguf_file import LIST, TEXT, U32, Gguf, good, written
from kvcompress.errors import CheckpointError
from kvcompress.hf.gguf_header import require_sound


def lying(what: str) -> Gguf:
    file, key, tensor = good(), good().keys, good().tensors
    name, dims, kind, offset = tensor[0]
    others = [one for one in key if b"block" not in one[0]]
    return {
        "keys, for which it has no room": replace(file, counts={"keys": 2**62}),
        "tensors, for which it has no room": replace(file, counts={"tensors": 2**62}),
        "items, for which it has no room": replace(file, counts={"items": 2**62}),
        "has 4611686018427387904 bytes": replace(file, counts={"name": 2**62}),
        "dimensions": replace(file, counts={"dims": 2**31}),
        "comes twice": replace(file, keys=[*key, key[0]]),
        "unknown type": replace(file, keys=[*key, (b"a", 99, 0)]),
        "a list of the unknown type": replace(file, keys=[*key, (b"a", LIST, (99, []))]),
        "version 9": replace(file, version=9),
        "an alignment of 0": replace(file, keys=[key[0], (b"general.alignment", U32, 0)]),
        "ends behind the file": replace(file, tensors=[(name, dims, kind, 2**40), *tensor[1:]]),
        "impossible dimensions": replace(file, tensors=[(name, [0, 4], kind, offset), *tensor[1:]]),
        "the unknown type 77": replace(file, tensors=[(name, dims, 77, offset), *tensor[1:]]),
        "block_count = 4000": replace(file, keys=[*others, (b"llama.block_count", U32, 4000)]),
        "no tensor is wider": replace(file, keys=[*key, (b"llama.other_length", U32, 2**30)]),
        "what model": replace(file, keys=[(b"general.name", TEXT, b"a")]),
    }[what]  # fmt: skip


@pytest.mark.parametrize("what", [
    "keys, for which it has no room", "tensors, for which it has no room", "items, for which it has no room",
    "has 4611686018427387904 bytes", "dimensions", "comes twice", "unknown type", "a list of the unknown type",
    "version 9", "an alignment of 0", "ends behind the file", "impossible dimensions", "the unknown type 77",
    "block_count = 4000", "no tensor is wider", "what model",
])  # fmt: skip
def test_a_lie_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(written(lying(what)))
    with pytest.raises(CheckpointError, match=what) as refused:
        require_sound(path)
    assert str(refused.value).isprintable()


def test_a_good_header_is_taken_and_every_cut_of_it_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "a.gguf", written(good())
    path.write_bytes(data)
    require_sound(path)
    for length in range(4, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            require_sound(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(CheckpointError, match="empty"):
        require_sound(tmp_path / "empty.gguf")
