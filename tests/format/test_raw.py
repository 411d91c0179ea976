"""Laws of the raw snapshot file: the same bits back, and every other file refused in one line that names it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import kvcompress
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.format.container import save
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.format.examples import DTYPES, make_origin, make_snapshot, require_identical

GOLDEN = Path(__file__).parent / "golden" / "raw.safetensors"


def parts() -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of the golden file as another program would see them."""
    with safe_open(GOLDEN, framework="pt") as file:
        return load_file(GOLDEN), file.metadata()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_snapshot_survives_the_file_bit_by_bit(tmp_path: Path, tokens: int, dtype: str) -> None:
    snapshot = make_snapshot(tokens, dtype)
    save_raw(tmp_path / "a.safetensors", snapshot)
    require_identical(load_raw(tmp_path / "a.safetensors"), snapshot)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_golden_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    require_identical(load_raw(GOLDEN), make_snapshot())


def test_names_and_shapes_are_those_of_the_specification() -> None:
    tensors, metadata = parts()
    assert {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()} == {
        "layers.0.keys": ("torch.bfloat16", [2, 5, 4]),
        "layers.0.values": ("torch.bfloat16", [2, 5, 4]),
        "layers.0.positions": ("torch.int64", [5]),
        "layers.1.keys": ("torch.bfloat16", [2, 3, 4]),
        "layers.1.values": ("torch.bfloat16", [2, 3, 6]),
        "layers.1.positions": ("torch.int64", [3]),
        "token_ids": ("torch.int64", [5]),
    }
    assert sorted(metadata) == ["format", "origin", "version"]
    assert (metadata["format"], metadata["version"]) == ("kvcompress.snapshot", "1")
    assert json.loads(metadata["origin"])["fingerprint"]["config"] == "c" * 64


def test_other_order_and_further_metadata_are_accepted(tmp_path: Path) -> None:
    tensors, metadata = parts()
    shuffled = dict(reversed(tensors.items()))
    save_file(shuffled, tmp_path / "a.safetensors", metadata | {"note": "by another program"})
    require_identical(load_raw(tmp_path / "a.safetensors"), make_snapshot())


def test_tensors_may_share_memory_and_lie_in_any_order(tmp_path: Path) -> None:
    big = torch.arange(2 * 2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 2, 4)  # [2, T, H, D]
    keys, values, positions = big[0].transpose(0, 1), big[1].transpose(0, 1), torch.arange(3)
    layers = (LayerKV(keys, values, positions), LayerKV(keys, keys, positions))
    snapshot = KVSnapshot(layers, positions, make_origin(2, "float32", 3))
    save_raw(tmp_path / "a.safetensors", snapshot)
    require_identical(load_raw(tmp_path / "a.safetensors"), snapshot)


def test_loaded_cache_does_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(GOLDEN.read_bytes())
    snapshot = load_raw(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    require_identical(snapshot, make_snapshot())


def test_existing_file_is_replaced_with_force_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_raw(path, make_snapshot())
    with pytest.raises(InputError, match="already exists"):
        save_raw(path, make_snapshot(1))
    require_identical(load_raw(path), make_snapshot())
    save_raw(path, make_snapshot(1), force=True)
    require_identical(load_raw(path), make_snapshot(1))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
def test_refused_write_leaves_no_trace(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import resource, sys\n"
        "from kvcompress.errors import InputError\n"
        "from kvcompress.format.raw_snapshot import save_raw\n"
        "from tests.format.examples import make_snapshot\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: save_raw(sys.argv[1], make_snapshot())\n"
        "except InputError as error: print(error)\n"
    )
    path = tmp_path / "a.safetensors"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=120, cwd=root
    )
    assert done.stdout.startswith(f"{path}: cannot be written: file too large. Raise the limit")
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def _without(name: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, metadata: tensors.pop(name, None) if name in tensors else metadata.pop(name)


def _tensor(name: str, value: Tensor) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, _: tensors.update({name: value})


def _metadata(name: str, value: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda _, metadata: metadata.update({name: value})


BF16 = torch.bfloat16
LIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], None], str]] = {
    "tensor missing": (_without("layers.1.values"), "'layers.1.values' is missing"),
    "tokens missing": (_without("token_ids"), "'token_ids' is missing"),
    "tensor too many": (_tensor("layers.2.keys", torch.zeros(1)), "'layers.2.keys' does not belong there"),
    "origin missing": (_without("origin"), "'origin' is missing"),
    "origin no json": (_metadata("origin", "{"), "'origin' is not valid JSON"),
    "origin a list": (_metadata("origin", "[]"), "'origin' is not a JSON object"),
    "origin empty": (_metadata("origin", "{}"), "origin of the snapshot is incomplete"),
    "format missing": (_without("format"), "no raw snapshot"),
    "format foreign": (_metadata("format", "pt"), "no raw snapshot"),
    "version newer": (_metadata("version", "2"), "version '2'.*Upgrade"),
    "version missing": (_without("version"), "version None"),
    "keys dtype": (_tensor("layers.0.keys", torch.zeros(2, 5, 4)), "layer 0: dtype"),
    "keys shape": (_tensor("layers.0.keys", torch.zeros(5, 4, dtype=BF16)), "layer 0: keys .* not"),
    "tokens differ": (_tensor("layers.0.keys", torch.zeros(2, 4, 4, dtype=BF16)), "layer 0"),
    "positions dtype": (_tensor("layers.0.positions", torch.arange(5).int()), "'layers.0.positions' is not of 64-bit"),
    "positions order": (_tensor("layers.0.positions", torch.zeros(5, dtype=torch.int64)), "not strictly increasing"),
    "token ids dtype": (_tensor("token_ids", torch.zeros(5)), "'token_ids' is not of 64-bit"),
    "token ids shape": (_tensor("token_ids", torch.zeros(1, 5, dtype=torch.int64)), "token_ids must be int64 of shape"),
    "not a number": (_tensor("layers.0.keys", torch.full((2, 5, 4), float("nan"), dtype=BF16)), "NaN or infinity"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_refused_in_one_line_that_names_the_file(tmp_path: Path, lie: str) -> None:
    change, what = LIES[lie]
    tensors, metadata = parts()
    change(tensors, metadata)
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises((FormatError, InputError), match=what) as caught:
        load_raw(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_truncated_at_any_offset_is_refused(tmp_path: Path) -> None:
    data, path = GOLDEN.read_bytes(), tmp_path / "a.safetensors"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError) as caught:
            load_raw(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_flipped_bit_in_the_header_never_ends_in_an_untyped_error(tmp_path: Path) -> None:
    data, path = GOLDEN.read_bytes(), tmp_path / "a.safetensors"
    header_end = 8 + int.from_bytes(data[:8], "little")
    for offset in range(header_end):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << offset % 7
        path.write_bytes(flipped)
        with contextlib.suppress(KVCompressError):
            # This format has no checksums: a label in the origin may differ, the cache may not.
            assert torch.equal(load_raw(path).token_ids, make_snapshot().token_ids)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for data, what in (
        (b"", "the file is empty"),
        (b"hello, world, this is no tensor file", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=what):
            load_raw(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(FormatError, match="no raw snapshot"):
        load_raw(path)
    save(tmp_path / "b.kvz", LosslessCodec().encode(make_snapshot()))
    with pytest.raises(FormatError, match=r"this is a \.kvz file"):
        load_raw(tmp_path / "b.kvz")


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: cannot be read: no such file"):
        load_raw(tmp_path / "absent")
    with pytest.raises(InputError, match="it is a directory"):
        load_raw(tmp_path)


def test_origin_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    odd = replace(snapshot.origin, config={"x": float("nan")})
    with pytest.raises(InputError, match="cannot be stored as JSON"):
        save_raw(tmp_path / "a", KVSnapshot(snapshot.layers, snapshot.token_ids, odd))
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_written_in_one_place() -> None:
    """Where the library is called directly, a full disk ends in its own error and no remedy."""
    package = Path(kvcompress.__file__).parent
    writers = [path.name for path in package.rglob("*.py") if "save_file(" in path.read_text()]
    assert writers == ["safetensors_file.py"]
