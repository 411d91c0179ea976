"""Law: `-` is standard output or refused in one line; a file of that name never appears."""

from __future__ import annotations

import inspect
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner, Result

from kvcompress.cli.app import app, main
from kvcompress.errors import KVCompressError
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
    "store export --output": ["store", "export", "store", "talk", "-o"],
    "store seal --output": ["store", "seal", "store", "talk", "-o"],
    "store rekey --new-key": ["store", "--key-file", "key", "rekey", "encrypted", "--new-key"],
    "store init --new-key": ["store", "init", "another", "--new-key"],
}
UNFORCED = {"report --output", "store seal --output", "store rekey --new-key", "store init --new-key"}
"""What replaces an earlier one without being asked, or never does."""

INPUTS = {"encode --evidence", "encode --history", "inspect --plan-table"}
WRITING = ("write", "written here", "make", "directory for", "directory of the", "file of earlier comparisons")


def invoke(place: Path, *arguments: object) -> Result:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        return CliRunner().invoke(app, [*map(str, arguments)])


def refused(place: Path, *arguments: object) -> str:
    """Run a command that must be refused with nothing said but its one line, and return that."""
    result = invoke(place, *arguments)
    assert isinstance(result.exception, KVCompressError), result.output
    assert result.stdout == ""
    assert result.stderr == ""
    assert "\n" not in str(result.exception)
    return str(result.exception)


def commands(found: typer.Typer = app, name: str = "") -> Iterator[tuple[str, dict[str, inspect.Parameter]]]:
    """Yield name and parameters of every command."""
    for one in found.registered_commands:
        assert one.callback is not None
        title = f"{name} {one.name or one.callback.__name__}".strip()
        yield title, dict(inspect.signature(one.callback, eval_str=True).parameters)
    for group in found.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, str(group.name))


def options(parameter: inspect.Parameter, name: str) -> tuple[list[str], str]:
    """Return names and help of an option."""
    info = get_args(parameter.annotation)[1]
    named = [one for one in getattr(info, "param_decls", None) or () if one.startswith("--")]
    return named or [f"--{name.replace('_', '-')}"], (info.help or "").lower()


def outputs() -> Iterator[str]:
    """Yield command and option of all that take a path and say that something is written there."""
    for title, parameters in commands():
        for name, parameter in parameters.items():
            kind = get_args(parameter.annotation)[0]
            if Path in (kind, *get_args(kind)) and isinstance(get_args(parameter.annotation)[1], OptionInfo):
                named, told = options(parameter, name)
                if "--output" in named or any(word in told for word in WRITING):
                    yield f"{title} {named[-1]}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    place = tmp_path_factory.mktemp("outputs")
    (place / "text.txt").write_text("Some words to be recorded.")
    (place / "sessions.jsonl").write_bytes(sessions_file.read_bytes())
    assert invoke(place, "record", "--text", "text.txt", "-o", "raw.safetensors").exit_code == 0
    assert invoke(place, "encode", "raw.safetensors", "-o", "file.kvz", "--lossless").exit_code == 0
    for line in (
        ["store", "init", "store"],
        ["store", "append", "store", "talk", "raw.safetensors", "--lossless"],
        ["store", "init", "encrypted", "--new-key", "key"],
    ):
        assert invoke(place, *line).exit_code == 0
    return place


def test_every_option_that_writes_is_known_here() -> None:
    assert set(outputs()) - INPUTS == STREAMED | set(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_outputs_that_are_no_stream_are_refused_in_one_line(place: Path, name: str) -> None:
    assert "standard" in refused(place, *REFUSED[name], "-")
    if name not in UNFORCED:
        assert "standard" in refused(place, *REFUSED[name], "-", "--force")
    assert not (place / "-").exists()


@pytest.mark.parametrize("stream", ["-", "/dev/stdout"])
def test_files_go_to_standard_output_and_words_to_standard_error(place: Path, tmp_path: Path, stream: str) -> None:
    for arguments, ending, read in (
        (["record", "--text", "text.txt"], "safetensors", load_raw),
        (["encode", "raw.safetensors", "--lossless"], "kvz", load),
        (["decode", "file.kvz"], "safetensors", load_raw),
    ):
        result = invoke(place, *arguments, "-o", stream)
        assert result.exit_code == 0, result.stderr
        assert "tokens" in result.stderr
        (tmp_path / f"got.{ending}").write_bytes(result.stdout_bytes)
        read(tmp_path / f"got.{ending}")
    assert not (place / "-").exists()


def test_json_and_a_file_do_not_share_standard_output(place: Path) -> None:
    for arguments in (["record", "--text", "text.txt"], ["encode", "raw.safetensors"], ["decode", "file.kvz"]):
        assert "not both" in refused(place, *arguments, "-o", "-", "--json")


def test_a_terminal_takes_no_file(place: Path) -> None:
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "kvcompress", "decode", "file.kvz", "-o", "-"]
    done = subprocess.run(line, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=place, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: a terminal takes no such file")


def test_a_file_named_so_is_no_input_either(place: Path) -> None:
    assert "-: cannot be read" in refused(place, "inspect", "-")


def test_models_take_code_of_their_own_only_by_an_option_that_every_command_has() -> None:
    with_model = {name: found for name, found in commands() if "model" in found}
    expected = {"record", "resume", "encode", "decode", "fit", "harvest", "verify", "report", "calibrate", "inspect"}
    assert expected <= set(with_model)
    assert all("trust_remote_code" in found for found in with_model.values())


@pytest.fixture(scope="module")
def with_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.hf.test_remote_code import saved_with_code

    return saved_with_code(tmp_path_factory.mktemp("code"), model_of("llama"))


def test_nobody_is_asked_on_a_terminal(place: Path, with_code: Path) -> None:
    arguments = ["record", "--text", "text.txt", "-o", "y"]
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


LINE = '{"id": "a", "messages": [{"role": "user", "content": "hi"}]}\n'


def test_an_output_that_the_command_reads_is_refused_whatever_is_forced(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(LINE)
    record = ["record", "--session", "s.jsonl", "-o"]
    assert invoke(tmp_path, *record, "raw.safetensors").exit_code == 0
    assert invoke(tmp_path, "encode", "raw.safetensors", "-o", "s.kvz", "--lossless").exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for command in (
        [*record, "s.jsonl"],
        [*record, "both.safetensors", "--evidence", "both.safetensors"],
        [*record, "other.safetensors", "--evidence", "s.jsonl"],
        ["encode", "raw.safetensors", "--lossless", "-o", "./raw.safetensors"],
        ["decode", "s.kvz", "-o", "s.kvz"],
    ):
        told = invoke(tmp_path, *command, "--force")
        assert isinstance(told.exception, KVCompressError)
        assert "another part in the command" in str(told.exception)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_raw_snapshot_is_told_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(LINE)
    assert invoke(tmp_path, "record", "--session", "s.jsonl", "-o", "named.kvz").exit_code == 0
    for command in ("inspect", "verify"):
        told = invoke(tmp_path, command, "named.kvz")
        assert "this is a raw snapshot, not a .kvz file" in str(told.exception)
    assert invoke(tmp_path, "resume", "named.kvz", "--max-new-tokens", "1").exit_code == 0


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", ">&- 2>&-"])
def test_a_closed_standard_output_is_told_in_one_line(closed: str, tmp_path: Path) -> None:
    run = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m kvcompress codecs list {closed}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr in ("error: standard output is closed. Send it to a file, or to /dev/null.\n", "")
    assert ("2>" in closed) == (run.stderr == "")


@pytest.mark.parametrize("swallowed", [None, ModuleNotFoundError, KVCompressError, OSError])
def test_an_interrupt_is_one_line_and_130_whatever_became_of_it(
    swallowed: type[Exception] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            if swallowed is None:
                sys.exit(130)  # as typer does
            raise swallowed("of its own") from None

    monkeypatch.setattr("kvcompress.cli.app.app", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted. Nothing is half-written.\n"
