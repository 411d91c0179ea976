"""Law: `-` is standard output or refused in one line; a file of that name never appears."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from kvcompress.cli.app import app
from kvcompress.format.container import load
from kvcompress.format.raw_snapshot import load_raw
from tests.hf.families import model_of

STREAMED = {"record --output", "encode --output", "decode --output"}
REFUSED = {
    "record --evidence": ["record", "--text", "text.txt", "-o", "x.safetensors", "--evidence"],
    "encode --plan-table": ["encode", "raw.safetensors", "-o", "x.kvz", "--lossless", "--plan-table"],
    "report --output": ["report", "file.kvz", "--session", "sessions.jsonl", "-o"],
    "fit --output": ["fit", "--sessions", "sessions.jsonl", "-o"],
    "harvest --output": ["harvest", "--sessions", "sessions.jsonl", "-o"],
    "codecs pull --output": ["codecs", "pull", "reference-lm-tinyvae", "-o"],
}
INPUTS = {"encode --evidence", "encode --races", "inspect --plan-table"}
WRITING = ("write", "make", "directory for", "directory of the", "file of earlier comparisons")


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "kvcompress", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, check=False, stdin=subprocess.DEVNULL, **options)


def leaves(group: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(group, click.Group):
        yield name, group
        return
    for part, found in group.commands.items():
        yield from leaves(found, f"{name} {part}".strip())


def paths_of(found: click.Command) -> Iterator[str]:
    """Yield the options of a command that take a path and say that something is written there."""
    for one in found.params:
        if isinstance(one, click.Option) and "Path" in type(one.type).__name__:
            told = (one.help or "").lower()
            if any(word in told for word in WRITING) or "--output" in one.opts:
                yield max(one.opts, key=len)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    place = tmp_path_factory.mktemp("outputs")
    (place / "text.txt").write_text("Some words to be recorded.")
    (place / "sessions.jsonl").write_bytes(sessions_file.read_bytes())
    done = command("record", "--text", "text.txt", "-o", "raw.safetensors", cwd=place)
    assert done.returncode == 0, done.stderr
    done = command("encode", "raw.safetensors", "-o", "file.kvz", "--lossless", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_every_option_that_writes_is_known_here() -> None:
    found = {f"{name} {option}" for name, one in leaves(typer.main.get_command(app)) for option in paths_of(one)}
    assert found - INPUTS == STREAMED | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_outputs_that_are_no_stream_are_refused_in_one_line(place: Path, name: str) -> None:
    for force in ([], ["--force"]):
        if force and name == "report --output":
            continue
        done = command(*REFUSED[name], "-", *force, cwd=place)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stdout == b""
        assert done.stderr.count(b"\n") == 1
        assert b"standard" in done.stderr
    assert not (place / "-").exists()


@pytest.mark.parametrize("stream", ["-", "/dev/stdout"])
def test_files_go_to_standard_output_and_words_to_standard_error(place: Path, tmp_path: Path, stream: str) -> None:
    for arguments, ending, read in (
        (["record", "--text", "text.txt"], "safetensors", load_raw),
        (["encode", "raw.safetensors", "--lossless"], "kvz", load),
        (["decode", "file.kvz"], "safetensors", load_raw),
    ):
        done = command(*arguments, "-o", stream, cwd=place)
        assert done.returncode == 0, done.stderr
        assert b"tokens" in done.stderr
        (tmp_path / f"got.{ending}").write_bytes(done.stdout)
        read(tmp_path / f"got.{ending}")
    assert not (place / "-").exists()


def test_json_and_a_file_do_not_share_standard_output(place: Path) -> None:
    for arguments in (["record", "--text", "text.txt"], ["encode", "raw.safetensors"], ["decode", "file.kvz"]):
        done = command(*arguments, "-o", "-", "--json", cwd=place)
        assert done.returncode == 1
        assert done.stdout == b""
        assert b"not both" in done.stderr


def test_a_terminal_takes_no_file(place: Path) -> None:
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "kvcompress", "decode", "file.kvz", "-o", "-"]
    done = subprocess.run(line, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=place, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: a terminal takes no such file")


def test_a_file_named_so_is_no_input_either(place: Path) -> None:
    done = command("inspect", "-", cwd=place)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


def test_models_take_code_of_their_own_only_by_an_option_that_every_command_has() -> None:
    with_model = {
        name: {option for one in found.params for option in one.opts}
        for name, found in leaves(typer.main.get_command(app))
        if any("--model" in one.opts for one in found.params)
    }
    assert {"record", "resume", "encode", "decode", "fit", "harvest", "verify", "report", "calibrate"} <= set(
        with_model
    )
    assert all("--trust-remote-code" in options for options in with_model.values())


@pytest.fixture(scope="module")
def with_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.hf.test_remote_code import saved_with_code

    return saved_with_code(tmp_path_factory.mktemp("code"), model_of("llama"))


@pytest.mark.parametrize("arguments", [["doctor"], ["codecs", "list"], ["record", "--text", "text.txt", "-o", "y"]])
def test_nobody_is_asked_on_a_terminal(place: Path, with_code: Path, arguments: list[str]) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    line = [sys.executable, "-m", "kvcompress", *arguments, "--model", str(with_code)]
    done = subprocess.run(line, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=place, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1
    assert b"--trust-remote-code" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert not (with_code / "ran").exists()
