"""Storage against computing as a user chooses, on a small model with the bundled tokenizer and codecs fitted here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.codec.directory import load_codec
from kvcompress.errors import KVCompressError
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress.hub.bundled import recompute_choices
from tests.cli.test_commands import refused as refused_in_a_process
from tests.cli.test_commands import run
from tests.trade_off_example import FIT, build_trade_off


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    """A directory with a model, its sessions, codecs for m = 0 and 1, and a raw snapshot."""
    return build_trade_off(tmp_path_factory.mktemp("trade_off"), sessions_file)


def refused(*arguments: object) -> str:
    """Run a command that must be refused in this process; return its message, which is one line."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, KVCompressError), result.output
    told = str(result.exception)
    assert "\n" not in told
    return told


def partners(place: Path) -> tuple[object, ...]:
    return ("--model", place / "model", "--codec", place / "codec")


def test_codecs_of_the_dial_lie_beside_the_one_that_codes_all(place: Path) -> None:
    assert recompute_choices(place / "codec") == (0, 1)
    assert load_codec(place / "codec").groups == [(0, 1, 2)]
    assert load_codec(place / "codec", 1).groups == [(2,)]
    card = (place / "codec" / "recompute-1" / "README.md").read_text()
    assert "Layers 0 to 1 are not coded" in card
    assert "--recompute-layers 1" in card


def test_fitting_the_codec_again_keeps_those_beside_it(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "codec", tmp_path / "codec")
    options = ("--model", place / "model", "--sessions", place / "sessions.jsonl", *FIT)
    run("fit", *options, "-o", tmp_path / "codec", "--force", "--seed", 1)
    assert load_codec(tmp_path / "codec", 1).fingerprint == load_codec(place / "codec", 1).fingerprint


def test_a_file_says_what_it_leaves_out(place: Path) -> None:
    data = run("inspect", place / "one.kvz")
    assert data["settings"]["recompute_layers"] == 1
    assert data["raw_bytes"] == load_raw(place / "raw.safetensors").raw_bytes  # the whole cache, known layers too
    told = CliRunner().invoke(app, ["inspect", str(place / "one.kvz")]).stdout
    assert "layers 0 to 1: restoring needs the model" in told


def test_decoding_gives_the_known_layers_exactly(place: Path, tmp_path: Path) -> None:
    run("decode", place / "one.kvz", "-o", tmp_path / "again.safetensors", *partners(place))
    again, exact = load_raw(tmp_path / "again.safetensors"), load_raw(place / "raw.safetensors")
    for ours, theirs in zip(again.layers[:2], exact.layers[:2], strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    assert not torch.equal(again.layers[2].values, exact.layers[2].values)


@pytest.mark.parametrize("command", ["decode", "verify"])
def test_without_the_model_the_remedy_is_told(place: Path, tmp_path: Path, command: str) -> None:
    output = ("-o", tmp_path / "x.safetensors") if command == "decode" else ()
    line = refused_in_a_process(command, place / "one.kvz", *output, "--codec", place / "codec")
    assert "one.kvz: the model recomputes the first 2 layers of this file. Name the model with --model DIR." in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["decode", "verify", "resume"])
def test_another_model_is_refused(place: Path, tmp_path: Path, command: str) -> None:
    output = ("-o", tmp_path / "x.safetensors") if command == "decode" else ()
    options = (*output, "--codec", place / "codec", "--model", "reference-lm")
    assert "mismatch in the model's config" in refused(command, place / "one.kvz", *options)


def test_with_the_model_all_commands_work(place: Path, tmp_path: Path) -> None:
    found = run("verify", place / "one.kvz", *partners(place))
    assert (found["decodes"], found["model"]) == ("ok", "ok")
    assert len(run("resume", place / "one.kvz", *partners(place), "--max-new-tokens", 3)["new_token_ids"]) > 0
    options = ("--session", place / "sessions.jsonl", "-o", tmp_path / "report")
    report = run("report", place / "one.kvz", *partners(place), *options)
    assert report["file_bytes"] == (place / "one.kvz").stat().st_size
    assert report["kl_nats"] < 0.01


def test_verify_without_a_codec_names_the_remedy(place: Path) -> None:
    assert "--codec" in run("verify", place / "one.kvz")["codec"]


def test_a_bound_on_the_kl_holds_with_recomputed_layers(place: Path, tmp_path: Path) -> None:
    options = ("--recompute-layers", 1, "--max-kl", 0.01, *partners(place))
    data = run("encode", place / "raw.safetensors", "-o", tmp_path / "a.kvz", *options)
    assert data["settings"]["recompute_layers"] == 1
    assert data["settings"]["certificate"]["kl_nats"] <= 0.01


def test_a_share_of_layers_is_one_of_the_sessions_own(place: Path, tmp_path: Path) -> None:
    """With and without the codec's name: what counts is the model that recorded it, not the bundled one."""
    layers = len(load_raw(place / "raw.safetensors").layers)
    options = ("--recompute-layers", f"{100 / layers:.4f}%", *partners(place))
    data = run("encode", place / "raw.safetensors", "-o", tmp_path / "a.kvz", *options)
    assert data["settings"]["recompute_layers"] == 1
    line = refused("encode", place / "raw.safetensors", "-o", tmp_path / "b.kvz", "--recompute-layers", "50%")
    assert "no codec at hand belongs to this model" in line or "mismatch" in line


def rows(place: Path, tmp_path: Path, megabits: float) -> dict[str, Any]:
    options = ("--link", megabits, "--quality", "high", *partners(place))
    return run("encode", place / "raw.safetensors", "-o", tmp_path / f"{megabits}.kvz", *options)


@pytest.mark.parametrize("megabits", [1e-4, 1e6])
def test_a_link_takes_the_soonest_way_back(place: Path, tmp_path: Path, megabits: float) -> None:
    data = rows(place, tmp_path, megabits)
    assert [way["recompute_layers"] for way in data["trade_off"]] == [0, 1]
    for way in (*data["trade_off"], data["prefill"]):
        assert way["transfer_seconds"] == pytest.approx(8 * way["file_bytes"] / (megabits * 1e6))
        assert way["total_seconds"] == way["transfer_seconds"] + way["restore_seconds"]
    best = min(data["trade_off"], key=lambda way: way["total_seconds"])
    assert data["settings"].get("recompute_layers", 0) == best["recompute_layers"]
    assert data["file_bytes"] == best["file_bytes"] == (tmp_path / f"{megabits}.kvz").stat().st_size
    if megabits < 1:  # bytes alone decide
        assert best["file_bytes"] == min(way["file_bytes"] for way in data["trade_off"])


def test_token_ids_alone_over_a_slow_link_are_told_of(place: Path, tmp_path: Path) -> None:
    options = ["encode", place / "raw.safetensors", "-o", tmp_path / "a.kvz", "--link", 1e-4, *partners(place)]
    result = CliRunner().invoke(app, list(map(str, options)))
    assert result.exit_code == 0
    assert "note: sending the token ids alone and prefilling takes" in result.stderr
    header, *table = [line.split() for line in result.stdout.partition("\n\n")[2].splitlines()]
    assert header[:5] == ["layers", "recomputed", "bytes", "transfer", "restore"]
    assert [line[0] for line in table] == ["0", "1", "prefill"]
    assert sum(line[-1] == "chosen" for line in table[:2]) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--recompute-layers", "2"], "no codec here that recomputes 2 layers. It has: 0, 1;"),
        (["--recompute-layers", "-1"], "-1 layers cannot be recomputed. Choose 0 or more."),
        (["--link", "0"], "a link's speed in Mbit/s must be a positive number, not 0."),
        (["--link", "-3"], "must be a positive number"),
        (["--link", "nan"], "must be a positive number"),
        (["--link", "10", "--recompute-layers", "1"], "Name the layers or the link, not both."),
        (["--lossless", "--recompute-layers", "1"], "stores every layer"),
    ],
)
def test_impossible_wishes_are_refused(place: Path, tmp_path: Path, options: list[str], told: str) -> None:
    line = refused("encode", place / "raw.safetensors", "-o", tmp_path / "x.kvz", "--codec", place / "codec", *options)
    assert told in line
    assert not (tmp_path / "x.kvz").exists()


def test_a_decoded_cache_is_not_stored_as_if_it_were_exact(place: Path, tmp_path: Path) -> None:
    """Its first layers are not what the model computes, so no later reader could restore them."""
    run(
        "encode", place / "raw.safetensors", "-o", tmp_path / "a.kvz", "--quality", "usable", "--codec", place / "codec"
    )
    run("decode", tmp_path / "a.kvz", "-o", tmp_path / "lossy.safetensors", "--codec", place / "codec")
    options = ("-o", tmp_path / "b.kvz", "--recompute-layers", 1, *partners(place))
    line = refused("encode", tmp_path / "lossy.safetensors", *options)
    assert "lossy.safetensors: layer 1 differs by" in line
    assert "Use --recompute-layers 0." in line


@pytest.mark.parametrize("layers", ["-1", "2"])
def test_fits_that_leave_nothing_to_code_are_refused(place: Path, tmp_path: Path, layers: str) -> None:
    options = ("--model", place / "model", "--sessions", place / "sessions.jsonl", "--recompute-layers", layers)
    line = refused("fit", *options, "-o", tmp_path / "codec")
    assert f"{layers} layers cannot be recomputed of a model that has 3. Choose 0 to 1." in line
    assert not (tmp_path / "codec").exists()


def test_a_session_recorded_elsewhere_than_it_is_restored_decodes(place: Path, tmp_path: Path) -> None:
    """In another precision the recomputed layers differ by rounding, and the file is still read."""
    raw = load_raw(place / "raw.safetensors")
    save_raw(tmp_path / "raw.safetensors", raw)
    options = ("--dtype", "bfloat16", "--max-new-tokens", 2)
    assert run("resume", place / "one.kvz", *partners(place), *options)["new_token_ids"]
