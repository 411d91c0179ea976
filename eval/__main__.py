"""Command line of the workshop: `python -m eval ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eval.bench import bench
from eval.demo import demo
from eval.tiers import tiers

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Show and measure the whole path on the bundled model."""


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("reports/demo"),
    session_id: Annotated[str, typer.Option("--id", help="Session of examples/sessions.jsonl.")] = "s000",
    tokens: Annotated[int, typer.Option(help="Tokens stored.")] = 1024,
) -> None:
    """Record, encode, decode in another process, resume, report."""
    demo(out, session_id, tokens)


@app.command("bench")
def bench_command(
    tokens: Annotated[int, typer.Option(help="Length of the session.")] = 2048,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    out: Annotated[Path, typer.Option(help="JSON file of the result.")] = Path("reports/bench.json"),
) -> None:
    """Time restoring against prefilling again, in one run."""
    bench(tokens, threads, out)


@app.command("tiers")
def tiers_command(
    tokens: Annotated[int, typer.Option(help="Tokens stored of each session.")] = 1024,
    count: Annotated[int, typer.Option(help="Sessions.")] = 24,
    readme: Annotated[bool, typer.Option("--readme", help="Write the table into README.md.")] = False,
    out: Annotated[Path, typer.Option(help="JSON file of the result.")] = Path("reports/tiers.json"),
) -> None:
    """Measure every quality word over the example sessions, after encode, decode and resume."""
    tiers(tokens, count, out, readme=readme)


if __name__ == "__main__":
    app()
