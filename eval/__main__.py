"""Measurements and reports of this repository: `python -m eval ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from eval.bench import bench, bench_planning
from eval.check_command import check_real_command
from eval.demo import demo
from eval.demo_fit import demo_fit
from eval.fuzz.command import fuzz_command
from eval.models import model_smollm2_command
from eval.run import run_command
from eval.segments.command import segments_command
from eval.writes import writes_command
from kvcompress.errors import InputError, KVCompressError
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL
from kvcompress_eval.suite.spoken import spoken_command

SESSIONS = Path("examples/sessions.jsonl")

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """What only this repository needs: demonstration, benchmarks, its own reports. Codecs: `kvcompress eval`."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Directory to write the report to.")] = Path("reports/demo"),
    session_id: Annotated[str, typer.Option("--id", help="Session of examples/sessions.jsonl.")] = "s000",
    tokens: Annotated[int, typer.Option(help="Number of tokens to store.")] = 1024,
    model: Annotated[
        str | None, typer.Option(help="With --fit: model directory.", show_default="the bundled one")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit a codec for the model first, from the examples.")] = False,
    codec: Annotated[
        Path | None, typer.Option(help="With --fit: directory to write the codec to.", show_default="OUT/codec")
    ] = None,
    quality: Annotated[
        str | None, typer.Option(help="With --fit: quality of the file.", show_default="transparent")
    ] = None,
) -> None:
    """Demonstrate the commands: record, encode, decode, resume, report; with --fit also make a codec."""
    if fit:
        demo_fit(model or DEFAULT_MODEL, codec or out / "codec", out, session_id, tokens, quality)
        return
    if model or codec or quality:
        raise InputError("the demonstration of the bundled model takes no other", "Pass --fit")
    demo(out, session_id, tokens)


@app.command("bench")
def bench_command(
    tokens: Annotated[
        int | None, typer.Option(help="Length of the session.", show_default="2048; with --plan 1024")
    ] = None,
    threads: Annotated[int, typer.Option(help="Number of threads.")] = 2,
    out: Annotated[Path, typer.Option(help="JSON file to write the result to.")] = Path("reports/bench.json"),
    plan: Annotated[
        bool, typer.Option("--plan", help="Compare the time of planning with that of encoding instead.")
    ] = False,
) -> None:
    """Compare the time of restoring with that of prefilling, or of planning with that of encoding."""
    if plan:
        bench_planning(tokens or 1024, threads, out)
    else:
        bench(tokens or 2048, threads, out)


@app.command("readme")
def readme_command(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Tables to write: results, real-model, tasks.", show_default="all")
    ] = None,
) -> None:
    """Write tables of the README from the reports in eval/reports."""
    from eval.readme.write import TABLES, write_tables

    write_tables(tables or list(TABLES), Path("README.md"))


app.command("run")(run_command)


@app.command("ablation")
def ablation_command(
    codec: Annotated[
        str, typer.Option(help="Codec: a name from `kvcompress codecs list`, or a directory.")
    ] = DEFAULT_CODEC,
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")] = DEFAULT_MODEL,
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")] = SESSIONS,
    also: Annotated[list[str], typer.Option(help="NAME=DIR: also measure this codec; give several for more.")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(help="Number of sessions to measure.", min=1)] = 16,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each session to store.", min=32)] = 1024,
    continuation: Annotated[int, typer.Option(help="Number of tokens to predict after them.", min=64)] = 128,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 2,
    out: Annotated[Path, typer.Option(help="JSON file to write all points to.")] = Path("reports/ablation.json"),
    log: Annotated[Path | None, typer.Option(help="Markdown file whose ablation table to replace.")] = None,
) -> None:
    """Remove the parts of the codec one by one and compare file sizes at equal KL."""
    import torch

    from eval.ablation.run import ablate

    torch.set_num_threads(threads)
    ablate(model, codec, sessions, also, count, tokens, continuation, out, log)


@app.command("prune")
def prune_command(
    codec: Annotated[
        str, typer.Option(help="Codec: a name from `kvcompress codecs list`, or a directory.")
    ] = DEFAULT_CODEC,
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")] = DEFAULT_MODEL,
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")] = SESSIONS,
    out: Annotated[Path, typer.Option(help="Directory for rows and report; rows of an earlier run are kept.")] = Path(
        "reports/prune"
    ),
    quality: Annotated[
        list[str] | None,
        typer.Option(help="Quality whose file size plans must meet; give several for more.", show_default="all three"),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each session to store.", min=32)] = 1024,
    continuation: Annotated[int, typer.Option(help="Number of tokens to predict after them.", min=64)] = 128,
    count: Annotated[int, typer.Option(help="Number of sessions to measure; --fit uses the others.", min=1)] = 24,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 2,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Quality at which to compare every scorer, not only the candidate search.", show_default="all"
        ),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the parameters of scorers instead of measuring.")] = False,
) -> None:
    """Compare scorers at equal bytes and at equal numbers of kept tokens, with controls; or fit them."""
    import torch

    from eval.leaderboard.board import BoardSettings
    from eval.leaderboard.run import fit as fit_scorers
    from eval.leaderboard.run import leaderboard

    torch.set_num_threads(threads)
    qualities = tuple(quality or BoardSettings().qualities)
    settings = BoardSettings(qualities, tokens, continuation, count, tuple(compare or qualities))
    command = spoken_command(sys.argv)
    if fit:
        typer.echo(str(fit_scorers(model, codec, sessions, settings, command)))
        return
    leaderboard(model, codec, sessions, out, settings, command)
    typer.echo((out / "prune.md").read_text(encoding="utf-8"))


@app.command("recompute")
def recompute_command(
    codec: Annotated[
        str, typer.Option(help="Codec: a name from `kvcompress codecs list`, or a directory.")
    ] = DEFAULT_CODEC,
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")] = DEFAULT_MODEL,
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")] = SESSIONS,
    out: Annotated[Path, typer.Option(help="Directory to write the result to.")] = Path("reports/recompute"),
    count: Annotated[int, typer.Option(help="Number of sessions to measure.", min=1)] = 24,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 2,
) -> None:
    """Measure the trade-off from coding all layers to prefilling: bytes, KL and seconds over recomputed layers."""
    import torch

    from eval.recompute.report import write_page
    from eval.recompute.run import TradeOffSettings, run_trade_off
    from kvcompress.cli.console import progress_bar

    torch.set_num_threads(threads)
    command = spoken_command(sys.argv)
    with progress_bar("trade_off") as progress:
        result = run_trade_off(model, codec, sessions, out, TradeOffSettings(count=count), progress, command)
    write_page(result, out)
    typer.echo((out / "report.md").read_text(encoding="utf-8"))


@app.command("layers")
def layers_command(
    root: Annotated[Path, typer.Option(help="Directory of the checkout.")] = Path(),
) -> None:
    """Draw the packages of kvcompress and their imports."""
    from eval.layers import layers_of

    for line in layers_of(root).lines():
        typer.echo(line)


app.command("fuzz")(fuzz_command)


app.command("segments")(segments_command)


app.command("writes")(writes_command)


app.command("check-real")(check_real_command)


app.command("model-smollm2")(model_smollm2_command)


def run() -> None:
    """Run a command; what a user can cause ends in one line and exit status 1."""
    try:
        app()
    except KVCompressError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    run()
