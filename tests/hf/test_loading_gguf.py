"""GGUF files: the model in them, kept once beside them; and files that are none or hold what cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.errors import CheckpointError, InputError, KVCompressError
from kvcompress.hf import capture, dequantise, fingerprint, load_model
from kvcompress.hf.forward import run
from kvcompress.hf.loading import model_config, model_tokenizer
from tests.hf.tiny_gguf import some_ids, tiny_model, write_gguf
from train.mixture import token_counter


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let nothing be kept outside of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "Tiny-2L.Q8_0.gguf", tiny_model(), quantised=True)
    load_model(path)
    return path


def copied(path: Path, to: Path) -> Path:
    """Copy a file with what is kept beside it."""
    shutil.copytree(kept(path), kept(to / path.name))
    return Path(shutil.copy(path, to))


def kept(path: Path) -> Path:
    return path.with_name(path.name + ".dequantised")


def test_the_very_model_comes_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    origin = tiny_model()
    path = write_gguf(tmp_path / "Tiny-2L.F32.gguf", origin)
    capfd.readouterr()
    model, tokenizer = load_model(path)
    assert capfd.readouterr() == ("", "")
    assert fingerprint(model).weights == fingerprint(origin).weights
    with torch.no_grad():
        assert torch.equal(run(model, some_ids()), run(origin, some_ids()))
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer("says hello")["input_ids"]) == "says hello"


def test_file_and_kept_directory_are_one_model(quantised: Path) -> None:
    (one, words), (other, same_words) = load_model(quantised), load_model(kept(quantised))
    assert fingerprint(one, words) == fingerprint(other, same_words)
    assert "quantization_config" not in one.config.to_dict()
    assert not any(str(quantised.parent) in file.read_text() for file in kept(quantised).glob("*.json"))
    with torch.no_grad():
        assert torch.equal(run(one, some_ids()), run(other, some_ids()))


def test_the_kept_weights_are_those_that_transformers_reads(quantised: Path) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    read = AutoModelForCausalLM.from_pretrained(
        quantised.parent, gguf_file=str(quantised), quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        assert torch.equal(run(load_model(quantised)[0], some_ids()), run(read, some_ids()))


def test_sessions_name_the_file(quantised: Path) -> None:
    model, tokenizer = load_model(quantised, "bfloat16")
    origin = capture(model, tokenizer("hello")["input_ids"], tokenizer=tokenizer).origin
    assert (origin.model_name, origin.dtype, origin.rope_layers) == ("Tiny-2L.Q8_0", "bfloat16", (True, True))
    assert load_model(kept(quantised))[0].config.name_or_path == "Tiny-2L.Q8_0"


def test_configuration_and_tokenizer_alone(quantised: Path) -> None:
    assert model_config(quantised).num_hidden_layers == 2
    assert model_tokenizer(quantised).get_vocab() == load_model(quantised)[1].get_vocab()


def test_a_file_is_dequantised_once(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantise, "_read", lambda path: pytest.fail("read again"))
    load_model(quantised)


def test_another_file_of_the_same_name_is_noticed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model())
    before = fingerprint(load_model(path)[0])
    write_gguf(path, tiny_model(seed=1))
    after = fingerprint(load_model(path)[0])
    assert after.weights == fingerprint(tiny_model(seed=1)).weights != before.weights
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.gguf", "tiny.gguf.dequantised"]


@pytest.mark.parametrize("harm", ["cut", "gone", "note"])
def test_damaged_remains_are_made_again(quantised: Path, tmp_path: Path, harm: str) -> None:
    path = copied(quantised, tmp_path)
    weights, note = kept(path) / "model.safetensors", kept(path) / "kvcompress.json"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "gone":
        weights.unlink()
    else:
        note.write_text("[]")
    assert fingerprint(load_model(path)[0]) == fingerprint(load_model(quantised)[0])
    assert json.loads(note.read_text())["bytes"]["model.safetensors"] == weights.stat().st_size


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path, own_cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model())
    kept(path).mkdir()
    (kept(path) / "mine.txt").write_text("precious")
    model, _ = load_model(path)
    assert [file.name for file in kept(path).iterdir()] == ["mine.txt"]
    assert len(list(own_cache.rglob("tiny.gguf.dequantised/model.safetensors"))) == 1
    assert fingerprint(load_model(path)[0]) == fingerprint(model)
    assert model.config.name_or_path == "tiny"


def test_no_place_at_all_gives_one_line(tmp_path: Path, own_cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model())
    kept(path).write_text("a file")
    own_cache.write_text("a file too")
    with pytest.raises(CheckpointError, match="no place for the dequantised weights") as caught:
        load_model(path)
    assert "XDG_CACHE_HOME" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_of_the_same_name_where_the_command_runs_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("here", 1), ("there", 2)):
        (tmp_path / name).mkdir()
        write_gguf(tmp_path / name / "tiny.gguf", tiny_model(seed=seed))
    monkeypatch.chdir(tmp_path / "here")
    assert fingerprint(load_model("../there/tiny.gguf")[0]).weights == fingerprint(tiny_model(seed=2)).weights


def test_a_directory_with_one_file_is_that_file(quantised: Path) -> None:
    assert fingerprint(load_model(quantised.parent)[0]) == fingerprint(load_model(quantised)[0])


def test_a_file_without_tokenizer_has_none(tmp_path: Path) -> None:
    model, tokenizer = load_model(write_gguf(tmp_path / "bare.gguf", tiny_model(), tokens=False))
    assert tokenizer is None
    assert capture(model, [5, 6]).tokens == 2


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGML" + bytes(100), b'{"a": 1}', b"PK\x03\x04" + bytes(60)])
def test_what_is_no_gguf_file_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="this is no GGUF file") as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.00001, 0.0005, 0.004, 0.01, 0.02, 0.3, 0.7, 0.9999])
def test_a_truncated_file_is_refused_in_one_line(quantised: Path, tmp_path: Path, share: float) -> None:
    whole, path = quantised.read_bytes(), tmp_path / "cut.gguf"
    path.write_bytes(whole[: max(4, int(share * len(whole)))])
    with pytest.raises(CheckpointError, match="cannot be used") as caught:
        load_model(path)
    assert "Download it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["cut.gguf"]


@pytest.mark.parametrize("at", [4, 8, 16, 24, 32])
def test_a_header_of_nonsense_is_refused(quantised: Path, tmp_path: Path, at: int) -> None:
    content = bytearray(quantised.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path = tmp_path / "wild.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_model(path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", tiny_model(), architecture="rwkv6")
    with pytest.raises(CheckpointError, match="rwkv6 is not supported") as caught:
        load_model(path)
    assert "before quantisation" in str(caught.value)


def test_missing_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hf import tiny_gguf

    whole = tiny_gguf._tensors(tiny_model())
    del whole["blk.1.ffn_up.weight"]
    monkeypatch.setattr(tiny_gguf, "_tensors", lambda model: whole)
    path = write_gguf(tmp_path / "holed.gguf", tiny_model())
    with pytest.raises(CheckpointError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj"):
        load_model(path)


def test_a_missing_package_is_named(quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copy(quantised, tmp_path))
    monkeypatch.setattr(dequantise, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(CheckpointError, match=r'needs gguf\. Run `pip install "kvcompress\[gguf\]"`'):
        load_model(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(InputError, match="not a regular file"):
        load_model(tmp_path / "pipe.gguf")
    with pytest.raises(KVCompressError):
        load_model(tmp_path / ("long" * 100 + ".gguf"))


def test_sessions_are_counted_with_a_files_tokenizer(quantised: Path) -> None:
    session = Session("s", [], text="says hello")
    assert token_counter(str(quantised))(session) == len(session_token_ids(session, model_tokenizer(quantised))) > 0
