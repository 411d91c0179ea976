"""`--json` prints what docs/json.md says, for every command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvcompress.cli.app import app
from tests.cli.test_help import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
LINES = re.findall(r"^\| (`[^|]+`) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ROWS = {command: cell for commands, cell in LINES for command in re.findall(r"`([^`]+)`", commands)}
"""Command -> its cell of the page."""


def always(command: str) -> set[str]:
    """Return the names that the page lists before any condition."""
    return set(re.findall(r"`([a-z_0-9]+)`", ROWS[command].split(";")[0]))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> dict[str, dict[str, Any]]:
    """Return what each command prints, along one session."""
    place = tmp_path_factory.mktemp("json")
    raw, stored = place / "raw.safetensors", place / "a.kvz"
    calls: dict[str, list[object]] = {
        "record": ["--session", sessions_file, "--tokens", 80, "-o", raw],
        "encode": [raw, "-o", stored],
        "decode": [stored, "-o", place / "again.safetensors"],
        "resume": [stored, "--max-new-tokens", 2],
        "inspect": [stored],
        "inspect --plan": [stored],
        "verify": [stored],
        "codecs list": [],
        "codecs show": ["reference-lm-tinyvae"],
        "codecs pull": ["reference-lm-tinyvae", "-o", place / "codec"],
    }
    found = {}
    for command, arguments in calls.items():
        done = CliRunner().invoke(app, [*command.split(), *map(str, arguments), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found[command] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_and_a_row(command: str) -> None:
    assert any("--json" in option.opts for option in COMMANDS[command].params)
    assert command in ROWS


@pytest.mark.parametrize(
    "command", ["record", "encode", "decode", "resume", "inspect", "inspect --plan", "verify", "codecs list"]
)
def test_the_page_names_what_is_printed(command: str, printed: dict[str, dict[str, Any]]) -> None:
    named = set(re.findall(r"`([a-z_0-9]+)`", ROWS[command]))
    if command == "codecs list":
        assert set(printed[command]) == {"codecs"}
        assert set(printed[command]["codecs"][0]) == named - {"codecs", "fits"}
        return
    assert always(command) <= set(printed[command]) <= named


def test_one_codec_is_told_as_in_the_list(printed: dict[str, dict[str, Any]]) -> None:
    one = set(printed["codecs list"]["codecs"][0])
    assert set(printed["codecs show"]) == {"cards"} | one - {"place"}
    assert set(printed["codecs pull"]) == {"output"} | one - {"name", "place"}
