"""A model by bundled name, by directory and by Hub id; what is none of these is refused in one line."""

from __future__ import annotations

import functools
import json
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest

from kvcompress.errors import CheckpointError
from kvcompress.hf import capture, download, fingerprint, load_model
from kvcompress.hf.loading import model_config, model_directory, model_tokenizer
from kvcompress.hub.bundled import checkpoint_root, find_checkpoint, is_bundled
from tests.hf.families import model_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty Hub cache, and no network."""
    inside = functools.partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "hub")

    def offline(name: str, *, local_files_only: bool, **options: object) -> str:
        if not local_files_only:
            raise ConnectionError("no network\nin this test")
        return str(inside(name, local_files_only=True, **options))

    monkeypatch.setattr(download, "snapshot_download", offline)
    return tmp_path / "hub"


def in_cache(cache: Path, name: str, source: Path) -> Path:
    """Put a model into a Hub cache as a download would."""
    stored = cache / f"models--{name.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(source, stored / "snapshots" / COMMIT))


def saved(path: Path) -> Path:
    model_of("llama").save_pretrained(path)
    return path


def test_a_bundled_name_needs_no_help() -> None:
    model, tokenizer = load_model("reference-lm")
    again, _ = load_model(find_checkpoint("reference-lm"))
    assert fingerprint(model) == fingerprint(again)
    assert model_tokenizer("reference-lm").get_vocab() == tokenizer.get_vocab()
    assert model_config("reference-lm").num_hidden_layers == len(capture(model, [1]).layers)
    assert is_bundled("reference-lm")
    assert not is_bundled("reference-lm/nothing")


def test_a_directory_goes_before_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "user" / "model")
    assert model_directory("user/model") == Path("user/model")
    assert fingerprint(load_model("user/model")[0]) == fingerprint(model_of("llama"))


def test_a_hub_id_comes_from_the_cache_without_network(tmp_path: Path, hub_cache: Path) -> None:
    in_cache(hub_cache, "some-user/tiny.Llama-1", saved(tmp_path / "llama"))
    model, _ = load_model("some-user/tiny.Llama-1")
    assert fingerprint(model) == fingerprint(model_of("llama"))
    assert capture(model, [1, 2]).origin.model_name == "tiny.Llama-1"
    assert load_model(model_directory("some-user/tiny.Llama-1"))[0].config.name_or_path == "some-user/tiny.Llama-1"


@pytest.mark.parametrize("part", ["all", "config.json", "model.safetensors"])
def test_a_hub_id_that_cannot_be_had_gives_one_line(tmp_path: Path, hub_cache: Path, part: str) -> None:
    if part != "all":  # another program asked for some files only
        (in_cache(hub_cache, "user/model", saved(tmp_path / "llama")) / part).unlink()
    with pytest.raises(CheckpointError, match="no network") as caught:
        load_model("user/model")
    text = str(caught.value)
    assert text.startswith("user/model: no directory, file, bundled name or model in the Hub cache")
    assert "Check the name and the network" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "name", ["nothing", "./user/model", "/user/model", "user/model/more", "a b/c", "../x", "", "-a/b"]
)
def test_what_can_be_no_model_asks_no_network(name: str, hub_cache: Path) -> None:
    del hub_cache
    with pytest.raises(CheckpointError) as caught:
        load_model(name)
    assert "save_pretrained" in str(caught.value)
    assert "Hub did not" not in str(caught.value)


def test_a_directory_of_gguf_files_says_which(tmp_path: Path) -> None:
    for name in ("model.Q8_0.gguf", "model.Q4_1.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"no config\.json\. Name one of model\.Q4_1\.gguf, model\.Q8_0\.gguf"):
        load_model(tmp_path)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    where, ran = saved(tmp_path / "llama"), tmp_path / "ran"
    config = json.loads((where / "config.json").read_text())
    config |= {"model_type": "of_their_own", "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}}
    (where / "config.json").write_text(json.dumps(config))
    (where / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for read in (load_model, model_config):
        with pytest.raises(CheckpointError) as caught:
            read(where)
        assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_no_bundled_models_do_not_hide_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcompress.hub.bundled.checkpoint_root", lambda: tmp_path)
    assert checkpoint_root() != tmp_path
    with pytest.raises(CheckpointError, match="no such directory"):
        load_model("reference-lm")


def test_a_model_directory_that_asks_for_the_impossible_is_refused_at_once(tmp_path: Path) -> None:
    source = find_checkpoint("reference-lm")
    config = json.loads((source / "config.json").read_text())
    place = tmp_path / "config.json"
    for change in ({"num_hidden_layers": 10**9}, {"num_labels": 10**9}, {"text_config": {"vocab_size": 10**12}}):
        place.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=f"configuration says {next(iter(change))[:4]}|vocab_size"):
            load_model(tmp_path)
    for text in (
        '{"rope_scaling":' + "[" * 5000 + "]" * 5000 + "}",
        "[1]",
        "\ud83d".encode("utf-8", "replace").decode(),
    ):
        place.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_model(tmp_path)


@pytest.mark.parametrize("part", [{"num_hidden_layers": 4096}, {"text_config": {"num_hidden_layers": 4096}}])
def test_more_layers_than_weights_are_refused_before_they_are_built(tmp_path: Path, part: dict[str, object]) -> None:
    source = find_checkpoint("reference-lm")
    (tmp_path / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | part))
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"num_hidden_layers = 4096, and the weights are [0-9]+ tensors in all"):
        load_model(tmp_path)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../model.safetensors", 5])
def test_an_index_of_shards_names_nothing_but_safetensors_beside_it(tmp_path: Path, shard: object) -> None:
    source = find_checkpoint("reference-lm")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    (tmp_path / "a.safetensors").symlink_to((source / "model.safetensors").resolve())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="no safetensors file beside it"):
        load_model(tmp_path)
