"""`kvcompress eval`: measure codecs, a user's own too, beside what else could be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption
from kvcompress_eval.portability.command import devices_command
from kvcompress_eval.real_model.command import real_model_command
from kvcompress_eval.suite.command import run_command
from kvcompress_eval.tasks.command import tasks_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """Measure codecs beside baselines, on your own sessions or on the examples. Needs the extra `eval`."""


app.command("run")(run_command)


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(help="Directory of a report, or its report.json.")],
    second: Annotated[Path, typer.Argument(help="Directory of the other report.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two reports of `run` codec by codec, and mark differences beyond their standard errors."""
    from kvcompress_eval.suite.publish import read_result
    from kvcompress_eval.suite.report import compare

    text = compare(read_result(first), read_result(second))
    typer.echo(json.dumps({"markdown": text}) if as_json else text)


app.command("tasks")(tasks_command)
app.command("real-model")(real_model_command)
app.command("devices")(devices_command)
