"""`kvcompress encode --allow-other-weights` as a user types it: the bundled model with noise on its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.errors import KVCompressError
from kvcompress.format.raw_snapshot import load_raw
from kvcompress.hub.bundled import find_checkpoint
from tests.cli.test_commands import run
from tests.codec.test_other_weights import LARGE, SESSION_TOKENS, SMALL, noisy

LEAVE = "--allow-other-weights"


def written(place: Path, noise: float) -> Path:
    """A model directory with the bundled tokenizer."""
    noisy(noise)[0].save_pretrained(place)
    source = find_checkpoint("reference-lm")
    for file in (*source.glob("*token*"), source / "chat_template.jinja"):
        shutil.copy(file, place)
    return place


@pytest.fixture(scope="module", autouse=True)
def own_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is measured here is kept in a place of these tests."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVCOMPRESS_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    """Models near and far, twenty short sessions, and one recorded with each model."""
    root = tmp_path_factory.mktemp("other")
    tokenizer, rows = noisy(SMALL)[1], []
    for session in list(read_sessions(sessions_file))[:20]:
        text = tokenizer.decode(session_token_ids(session, tokenizer)[:SESSION_TOKENS])
        rows.append(json.dumps({"id": session.id, "text": text, "special_tokens": True}) + "\n")
    (root / "sessions.jsonl").write_text("".join(rows), encoding="utf-8")
    for name, noise in (("near", SMALL), ("far", LARGE)):
        model = written(root / name, noise)
        options = ("--session", sessions_file, "--id", "s030", "--tokens", SESSION_TOKENS)
        run("record", *options, "--model", model, "-o", root / f"{name}.safetensors")
    return root


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, KVCompressError), result.output
    told = str(result.exception)
    assert "\n" not in told
    return told


def test_refused_without_leave(place: Path, tmp_path: Path) -> None:
    raw = place / "near.safetensors"
    assert "mismatch in the model's weights" in refused("encode", raw, "-o", tmp_path / "a.kvz")
    told = refused("encode", raw, "-o", tmp_path / "a.kvz", LEAVE, "--model", place / "near")
    assert "never measured" in told
    assert not list(tmp_path.iterdir())


def test_a_bound_is_measured_on_the_session_itself(place: Path, sessions_file: Path, tmp_path: Path) -> None:
    file, partners = tmp_path / "a.kvz", ("--model", place / "near")
    data = run("encode", place / "near.safetensors", "-o", file, LEAVE, "--max-kl", 0.01, *partners)
    assert data["settings"]["certificate"]["kl_nats"] <= 0.01
    assert set(data["settings"]["other_weights"]) == {"codec", "session"}
    told = CliRunner().invoke(app, ["inspect", str(file)]).stdout
    assert f"recorded with weights {data['settings']['other_weights']['session'][:12]}" in told
    assert len(run("resume", file, *partners, "--max-new-tokens", 3)["new_token_ids"]) > 0
    assert "mismatch in the model's weights" in refused("resume", file)
    assert run("verify", file, "--codec", "reference-lm-tinyvae", *partners)["model"] == "ok"
    options = ("--session", sessions_file, "--id", "s030", "-o", tmp_path / "report")
    assert run("report", file, *partners, *options)["kl_nats"] < 0.1
    run("decode", file, "-o", tmp_path / "again.safetensors")
    again = load_raw(tmp_path / "again.safetensors")
    assert again.origin.fingerprint == load_raw(place / "near.safetensors").origin.fingerprint


def test_a_quality_is_measured_once_on_sessions(place: Path, tmp_path: Path) -> None:
    partners = ("--model", place / "near", LEAVE)
    measured = ("--quality", "high", "--sessions", place / "sessions.jsonl")
    first = run("encode", place / "near.safetensors", "-o", tmp_path / "a.kvz", *partners, *measured)
    assert first["settings"]["other_weights"]["sessions"] == 20
    run("encode", place / "near.safetensors", "-o", tmp_path / "b.kvz", *partners, "--quality", "high")
    assert (tmp_path / "a.kvz").read_bytes() == (tmp_path / "b.kvz").read_bytes()
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.kvz")]).stdout
    assert "measured on 20 sessions of these: mean KL" in told
    assert "promise" not in told


def test_weights_too_far_away_are_refused_with_the_figure(place: Path, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "a.kvz", "--model", place / "far", LEAVE, "--sessions", place / "sessions.jsonl")
    told = refused("encode", place / "far.safetensors", *options, "--quality", "usable")
    assert "does not keep 'usable' with these weights: at best mean KL" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((LEAVE, "--size-ratio", 20), "a size ratio measures nothing"),
        ((LEAVE, "--lossless"), "a lossless file measures nothing"),
        ((LEAVE, "--plan", "quick"), "a plan measures nothing"),
        ((LEAVE, "--max-kl", 0.1, "--sessions", "x.jsonl"), "a max KL is measured on the session itself"),
        (("--sessions", "x.jsonl"), "sessions are what other weights are measured on"),
    ],
)
def test_what_measures_nothing_is_refused(place: Path, tmp_path: Path, options: tuple[object, ...], told: str) -> None:
    assert told in refused("encode", place / "near.safetensors", "-o", tmp_path / "a.kvz", *options)
