"""Law: whatever a file says, terminals are shown only what prints, in whatever letters they know."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.errors import shown
from kvcompress.format.container import save
from kvcompress.hf import capture
from tests.hf.families import model_of

HOSTILE = "evil\x1b[2J\x07\r\n\u202eename-é-模型-\U0001f600"
NAME = "é-模型"
PROGRAM = """
from kvcompress.cli import console
from kvcompress.cli.app import app, main
from kvcompress.errors import InputError
import sys

@app.command()
def bars() -> None:
    with console.progress_bar("fit") as progress:
        progress("stage", 1, 2)
    sys.stdout.write("\\n")
    console.show({"name": TEXT}, as_json=False)
    raise InputError(TEXT, "é", path=TEXT)

sys.argv[1:] = ["bars"]
main()
"""


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("plain é 模", "plain é 模"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\u202e\u2028\x85", "\\u202e\\u2028\\x85"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_what_does_not_print_is_spelled_out(text: str, spelled: str) -> None:
    assert shown(text) == spelled
    assert shown("a\n\x1b", keep="\n") == "a\n\\x1b"


def on_terminal(encoding: str, code: str) -> tuple[int, bytes]:
    """Run a program with everything on a terminal; return its status and what the terminal got."""
    child, terminal = pty.fork()
    if child == 0:
        environment = os.environ | {"PYTHONIOENCODING": encoding, "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-c", code], environment)
    got = b""
    try:
        while part := os.read(terminal, 4096):
            got += part
    except OSError:  # the other side is closed
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), got


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminals_of_any_encoding_take_errors_output_and_bars(encoding: str) -> None:
    status, got = on_terminal(encoding, PROGRAM.replace("TEXT", ascii(HOSTILE)))
    assert status == 1
    assert b"Traceback" not in got
    assert b"UnicodeEncodeError" not in got
    lines = got.replace(b"\r\n", b"\n").split(b"\n")
    error = next(line for line in lines if line.startswith(b"error: "))
    assert b"\\x1b[2J\\x07\\r\\n\\u202eename" in error
    shown = next(line for line in lines if line.startswith(b"name "))
    for line in (error, shown):
        assert all(byte >= 32 for byte in line)
        text = line.decode(encoding)
        assert ("é" if encoding != "ascii" else "\\xe9") in text
        assert ("模" if encoding == "utf-8" else "\\u6a21") in text


@pytest.fixture(scope="module")
def foreign_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = model_of("llama")
    model.config.name_or_path = NAME
    path = tmp_path_factory.mktemp("foreign") / "file.kvz"
    try:
        save(path, LosslessCodec().encode(capture(model, torch.arange(1, 6))))
    finally:
        model.config.name_or_path = ""
    return path


def test_a_name_in_letters_that_a_terminal_lacks_is_spelled_out(foreign_file: Path) -> None:
    command = [sys.executable, "-m", "kvcompress", "inspect", str(foreign_file)]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"\\xe9-\\u6a21\\u578b" in done.stdout
    told = json.loads(CliRunner().invoke(app, ["inspect", str(foreign_file), "--json"]).stdout)
    assert told["model_name"] == NAME
