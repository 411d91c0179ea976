"""Help says every default, and what a machine has is told by the doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.errors import InputError

COMMANDS: dict[str, click.Command] = {}


def _collect(group: Any, prefix: tuple[str, ...] = ()) -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "commands"):
            _collect(command, (*prefix, name))
        else:
            COMMANDS[" ".join((*prefix, name))] = command


_collect(typer.main.get_command(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    told = CliRunner().invoke(app, [*name.split(), "--help"]).stdout
    for option in COMMANDS[name].params:
        assert option.param_type_name == "argument" or max(option.opts, key=len) in told
        assert "[default" not in (getattr(option, "help", "") or ""), "rich takes it for markup and shows nothing"
        shown = getattr(option, "show_default", None)
        if isinstance(shown, str):
            assert shown.split()[0] in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_described(name: str) -> None:
    assert COMMANDS[name].help
    for option in COMMANDS[name].params:
        assert getattr(option, "help", None) or option.param_type_name == "argument", f"{name} {option.name}"


def test_encode_shows_a_dozen_options_before_the_groups() -> None:
    panels = [getattr(option, "rich_help_panel", None) for option in COMMANDS["encode"].params]
    assert panels.count(None) <= 13  # the argument among them


def test_the_doctor_tells_versions_and_codecs() -> None:
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert found["torch"] != "missing"
    assert "reference-lm-tinyvae" in found["codecs"]
    assert found["broken"] == []


def test_the_doctor_looks_at_a_model() -> None:
    told = CliRunner().invoke(app, ["doctor", "--model", "reference-lm"]).stdout
    assert "supported, 6 layers, codec reference-lm-tinyvae" in told
    refused = CliRunner().invoke(app, ["doctor", "--model", "no-such-model"])
    assert refused.exit_code == 1


def test_completion_is_offered() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_report_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kvcompress.cli.extras.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["report", "x.kvz", "--session", "s.jsonl", "-o", str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert "kvcompress[report]" in str(done.exception)


def test_training_and_measuring_are_among_the_commands() -> None:
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert "Train a codec" in told
    assert "Measure codecs beside baselines" in told
    assert {"train", "eval run", "eval compare", "eval tasks", "eval real-model", "eval devices"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["train", "--sessions", "s.jsonl", "-o", "out"], "train"),
        (["eval", "run", "--quick"], "eval"),
        (["eval", "tasks", "--model", "m", "--codec", "c", "-o", "out"], "eval"),
        (["eval", "real-model", "--model", "m", "--codec", "c", "--sessions", "s.jsonl", "-o", "out"], "eval"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(
    command: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvcompress.cli.extras.find_spec", lambda name: None)
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, InputError)
    assert f'pip install "kvcompress[{extra}]"' in str(done.exception)
    assert "\n" not in str(done.exception)
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0


def test_recipes_come_along_and_another_is_refused(tmp_path: Path) -> None:
    for name in ("small", "smollm2"):
        told = CliRunner().invoke(app, ["train", "--config", name, "--show-recipe"]).stdout
        assert "divergence_stage:" in told
        changed = tmp_path / "mine.yaml"
        changed.write_text(told)
        assert CliRunner().invoke(app, ["train", "--config", str(changed), "--show-recipe"]).stdout == told
    done = CliRunner().invoke(app, ["train", "--config", "big", "--sessions", "s.jsonl", "-o", str(tmp_path / "codec")])
    assert isinstance(done.exception, InputError)
    assert "no such recipe. Name a YAML file or one of small, smollm2" in str(done.exception)
