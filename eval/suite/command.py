"""`python -m eval run`: the fidelity suite."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.models import KnownModel, known_model
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from eval.suite.settings import SuiteSettings

SESSIONS = Path("examples/sessions.jsonl")
"""The project's own: what they say may be shown."""


def run_command(
    codec: Annotated[list[str], typer.Option(help="Codec family, codec directory, or all; repeat it.")] = ["all"],  # noqa: B006
    model: Annotated[
        str, typer.Option(help="Bundled model, smollm2, model directory, GGUF file or Hub id.")
    ] = DEFAULT_MODEL,
    codec_dir: Annotated[
        str | None, typer.Option(help="Codec directory that the family tinyvae stands for. [default: the bundled one]")
    ] = None,
    sessions: Annotated[
        Path | None, typer.Option(help=f"JSON lines of recorded sessions. [default: {SESSIONS}]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of rows and report.")] = Path("reports/suite"),
    quick: Annotated[bool, typer.Option("--quick", help="A look in minutes: few sessions and points.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Sessions that rivals are fitted to; the unmeasured ones if not given.")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Harvest of `kvcompress harvest` that rivals are fitted to instead.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens stored of each session.", min=32)] = None,
    continuation: Annotated[
        int | None,
        typer.Option(help="Tokens predicted after them; figures are over 128 and over all.", min=64),
    ] = None,
    count: Annotated[int | None, typer.Option(help="Sessions measured.", min=1)] = None,
    hops: Annotated[int | None, typer.Option(help="Times a session is saved and resumed on its way.", min=0)] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Measure fixed QPs of this project's codecs, not its promises only.")
    ] = False,
    dial: Annotated[
        bool, typer.Option("--dial", help="Measure the codecs of a directory that leave layers to the model, too.")
    ] = False,
    go_on: Annotated[bool, typer.Option("--resume", help="Go on from the rows found in OUT.")] = False,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Print what a session says, which of others' may not be published.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 2,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Log to Weights & Biases too; offline unless told else.")
    ] = False,
    readme: Annotated[bool, typer.Option("--readme", help="Write the table into README.md.")] = False,
) -> None:
    """Measure codecs on recorded sessions after a true decode and resume, and write the report."""
    import torch

    from eval.baselines.registry import Own
    from eval.suite.publish import log_to_wandb, write_readme
    from eval.suite.run import Job, run_suite
    from eval.suite.settings import for_model
    from eval.suite.spoken import spoken_command

    torch.set_num_threads(threads)
    known = known_model(model) or KnownModel(model, DEFAULT_CODEC, SESSIONS, None)
    places = sessions or known.sessions
    harvest = known.shards if known.shards is not None and known.shards.is_dir() and not calibration else None
    job = Job(
        model=known.model,
        codecs=tuple(codec),
        sessions=places,
        out=out,
        calibration=calibration,
        shards=shards or harvest,
        own=Own(codec_dir or codec_of(known), curve=curve, dial=dial),
        command=spoken_command(sys.argv[1:]),
        go_on=go_on,
        show_text=show_text or is_own(places),
    )

    def size(parameters: int) -> SuiteSettings:
        found = for_model(parameters, quick=quick)
        return replace(
            found,
            tokens=tokens or found.tokens,
            continuation_tokens=continuation or found.continuation_tokens,
            count=count or found.count,
            hops=found.hops if hops is None else hops,
        )

    result = run_suite(job, size)
    typer.echo((out / "report.md").read_text(encoding="utf-8"))
    typer.echo(f"report: {out / 'report.html'}")
    if readme:
        write_readme(result, Path("README.md"))
    if wandb:
        log_to_wandb(result, out)


def codec_of(known: KnownModel) -> str:
    """Return the codec of a known model: one fitted where the makefile puts it, else what came with the project."""
    return known.codec if Path(known.codec).is_dir() else Path(known.codec).name


def is_own(sessions: Path) -> bool:
    """Tell whether a file of sessions is the one that comes with the project."""
    own = Path(__file__).parents[2] / SESSIONS
    return own.is_file() and sessions.resolve() == own.resolve()
