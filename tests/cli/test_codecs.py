"""`kvcompress codecs`, and that every command takes what it lists."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.codec.directory import load_codec
from kvcompress.codec.facts import read_facts
from kvcompress.codec.pull import pull
from kvcompress.errors import CheckpointError, InputError, KVCompressError
from kvcompress.hub import places
from kvcompress.hub.bundled import DEFAULT_CODEC, find_checkpoint
from kvcompress.hub.places import find_codec, home
from tests.cli.test_commands import refused as refused_in_a_process
from tests.cli.test_commands import run
from tests.hf.test_loading import in_cache

HUB_NAME = "some-user/tiny-codec"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty place of the user's own and an empty Hub cache."""
    monkeypatch.setenv("KVCOMPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


def listed(*arguments: object) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in run("codecs", "list", *arguments)["codecs"]}


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, KVCompressError), result.output
    told = str(result.exception)
    assert "\n" not in told
    return told


def test_codecs_of_every_place_are_listed_and_taken(own: Path, tmp_path: Path) -> None:
    source = find_checkpoint(DEFAULT_CODEC)
    shutil.copytree(source, own / "codecs" / "mine")
    shutil.copytree(source / "recompute-1", tmp_path / "several" / "one" / "recompute-1")
    in_cache(tmp_path / "hub", HUB_NAME, source)
    found = listed("--directory", tmp_path / "several")
    places = {DEFAULT_CODEC: "checkpoints", "mine": "home", HUB_NAME: "hub", f"{tmp_path}/several/one": "directory"}
    assert places.items() <= {name: row["place"] for name, row in found.items()}.items()
    for name in places:
        layers = found[name]["recompute_layers"][0]
        assert load_codec(name, layers).fingerprint == load_codec(DEFAULT_CODEC, layers).fingerprint
    assert found[f"{tmp_path}/several/one"]["recompute_layers"] == [1]


def test_the_table_says_what_a_codec_is_for_and_what_it_promises(own: Path) -> None:
    del own
    result = CliRunner().invoke(app, ["codecs", "list"])
    row = next(line for line in result.stdout.splitlines() if line.startswith(DEFAULT_CODEC))
    codec = load_codec()
    for told in ("checkpoints", "reference-lm", codec.model_fingerprint.weights[:12]):
        assert told in row
    assert f"{codec.promises['high'].kl_nats.measured:.4f}" in row
    assert run("codecs", "list")["codecs"][0]["codec_bytes"] > 1_000_000


@pytest.mark.parametrize("codec_option", ["encode", "inspect", "verify"])
def test_commands_take_a_listed_name(own: Path, tmp_path: Path, sessions_file: Path, codec_option: str) -> None:
    shutil.copytree(find_checkpoint(DEFAULT_CODEC), own / "codecs" / "mine")
    raw, file = tmp_path / "raw.safetensors", tmp_path / "a.kvz"
    run("record", "--session", sessions_file, "--tokens", 40, "-o", raw)
    run("encode", raw, "-o", file, "--quality", "high", "--codec", "mine")
    arguments = {"encode": (raw, "-o", tmp_path / "b.kvz"), "inspect": (file,), "verify": (file,)}[codec_option]
    run(codec_option, *arguments, "--codec", "mine")


def test_show_prints_the_guarantee_and_the_card(own: Path) -> None:
    del own
    told = CliRunner().invoke(app, ["codecs", "show", DEFAULT_CODEC]).stdout
    promise = load_codec().promises["transparent"]
    assert f"on {promise.sessions} sessions kept out of the fit mean KL {promise.kl_nats.measured:.3g} nats" in told
    assert "at most 0.005" in told
    assert "layers recomputed: 2" in told
    assert "Conditional transform codec" in told
    data = run("codecs", "show", DEFAULT_CODEC)
    assert data["parts"][0]["promises"]["transparent"] == promise.to_json()
    assert data["cards"]["1"].startswith("---")


def test_pull_copies_a_codec_under_its_name(own: Path, tmp_path: Path) -> None:
    in_cache(tmp_path / "hub", HUB_NAME, find_checkpoint(DEFAULT_CODEC))
    data = run("codecs", "pull", HUB_NAME)
    assert data["output"] == str(own / "codecs" / "tiny-codec")
    assert data["model_name"] == "reference-lm"
    assert find_codec("tiny-codec") == own / "codecs" / "tiny-codec"
    for layers in (0, 1, 2):
        assert load_codec("tiny-codec", layers).fingerprint == load_codec(DEFAULT_CODEC, layers).fingerprint
    again = run("codecs", "pull", own / "codecs" / "tiny-codec", "-o", tmp_path / "there")
    assert (again["recompute_layers"], again["output"]) == ([0, 1, 2], str(tmp_path / "there"))


def test_pull_replaces_only_when_told(own: Path) -> None:
    run("codecs", "pull", DEFAULT_CODEC)
    (own / "codecs" / DEFAULT_CODEC / "mark").write_text("mine")
    assert "already exists. Pass --force" in refused("codecs", "pull", DEFAULT_CODEC)
    assert (own / "codecs" / DEFAULT_CODEC / "mark").exists()
    run("codecs", "pull", DEFAULT_CODEC, "--force")
    assert not (own / "codecs" / DEFAULT_CODEC / "mark").exists()
    assert [path.name for path in (own / "codecs").iterdir()] == [DEFAULT_CODEC]


def test_a_name_in_two_places_means_the_first_and_the_other_is_listed_by_its_path(own: Path) -> None:
    run("codecs", "pull", DEFAULT_CODEC)
    found = listed()
    assert found[DEFAULT_CODEC]["place"] == "checkpoints"
    assert found[str(own / "codecs" / DEFAULT_CODEC)]["place"] == "home"
    assert find_codec(DEFAULT_CODEC) == find_checkpoint(DEFAULT_CODEC)


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("part", ["", "recompute-2"])
def test_a_damaged_codec_is_not_pulled(own: Path, tmp_path: Path, part: str) -> None:
    source = Path(shutil.copytree(find_checkpoint(DEFAULT_CODEC), tmp_path / "source"))
    damage(source / part / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged: its digest is"):
        pull(str(source))
    assert not list((own / "codecs").iterdir())  # nor anything half-written


def test_what_states_no_digest_is_not_pulled(own: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(find_checkpoint(DEFAULT_CODEC), tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    del config["fitted"]["fingerprint"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"stated no digest.*kvcompress calibrate"):
        pull(str(source))
    del own


def test_weights_of_the_checkout_are_those_of_its_index(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "checkpoints"
    for name in (DEFAULT_CODEC, "another-tinyvae"):
        shutil.copytree(find_checkpoint(DEFAULT_CODEC), root / name)
    index = {f"another-tinyvae{part}": "0" * 64 for part in ("", "/recompute-1", "/recompute-2")}
    (root / "index.json").write_text(json.dumps(index))
    for module in ("bundled", "places"):
        monkeypatch.setattr(f"kvcompress.hub.{module}.checkpoint_root", lambda: root)
    assert listed().keys() >= {DEFAULT_CODEC, "another-tinyvae"}  # both appear because they are there
    for attempt in (lambda: load_codec("another-tinyvae", 1), lambda: pull("another-tinyvae")):
        with pytest.raises(CheckpointError, match="the bundled weights are damaged"):
            attempt()
    assert pull(DEFAULT_CODEC).directory == own / "codecs" / DEFAULT_CODEC


def test_a_damaged_codec_hides_no_other(own: Path) -> None:
    (own / "codecs" / "torn").mkdir(parents=True)
    (own / "codecs" / "torn" / "config.json").write_text('{"groups"')
    result = CliRunner().invoke(app, ["codecs", "list"])
    assert result.exit_code == 0
    assert DEFAULT_CODEC in result.stdout
    assert "torn: config.json cannot be read" in result.stderr
    with pytest.raises(CheckpointError, match=r"neither a directory.*At hand: .*reference-lm-tinyvae"):
        find_codec("nothing")


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    source = Path(shutil.copytree(find_checkpoint(DEFAULT_CODEC), tmp_path / "source"))
    config = json.loads((source / "recompute-1" / "config.json").read_text())
    config["model"]["weights"] = "0" * 64
    (source / "recompute-1" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="different models"):
        read_facts(source)


@pytest.mark.parametrize("name", ["../codecs/mine", "/mine", "a//b/c", "-a/b"])
def test_a_name_leads_nowhere_else(own: Path, name: str) -> None:
    shutil.copytree(find_checkpoint(DEFAULT_CODEC), own / "codecs" / "mine")
    with pytest.raises(CheckpointError, match="neither a directory nor the name of a codec"):
        find_codec(name)


def test_without_the_network_one_line_says_so(own: Path) -> None:
    del own
    for command in (("codecs", "pull"), ("codecs", "show"), ("codecs", "list", "--hub")):
        told = refused(*command, "no-such-user/no-such-codec")
        assert told.startswith("no-such-user/no-such-codec: no codec has this name or lies in the Hub cache")
        assert "Check the name and the network" in told
    assert "the Hub did not give it" in refused_in_a_process("codecs", "pull", "no-such-user/no-such-codec")


def test_a_repository_of_something_else_is_no_codec(own: Path, tmp_path: Path) -> None:
    del own
    in_cache(tmp_path / "hub", "user/model", find_checkpoint("reference-lm"))
    assert "user/model" not in listed()
    with pytest.raises(CheckpointError, match="holds no codec"):
        find_codec("user/model")


def test_which_codecs_fit_a_model(own: Path) -> None:
    del own
    assert listed("--model", "reference-lm")[DEFAULT_CODEC]["fits"] == "yes"
    table = CliRunner().invoke(app, ["codecs", "list", "--model", "reference-lm"]).stdout.splitlines()
    assert "fits" in table[0]
    assert " yes " in table[1]


def test_the_users_place_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVCOMPRESS_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(places.sys, "platform", "linux")
    assert home() == Path("/somewhere/kvcompress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home() == Path.home() / ".cache" / "kvcompress"
    monkeypatch.setattr(places.sys, "platform", "darwin")
    assert home() == Path.home() / "Library" / "Caches" / "kvcompress"


def test_a_file_in_the_way_is_told(own: Path, tmp_path: Path) -> None:
    del own
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no directory"):
        pull(DEFAULT_CODEC, tmp_path / "file", force=True)
