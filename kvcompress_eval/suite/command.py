"""`kvcompress eval run`: the fidelity suite."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from eval.models import KnownModel, known_model
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL
from kvcompress_eval.suite.options import (
    CalibrationOption,
    CodecDirOption,
    CodecOption,
    ContinuationOption,
    CountOption,
    CurveOption,
    GoOnOption,
    HopsOption,
    ModelOption,
    OutOption,
    QuickOption,
    ReadmeOption,
    RecomputeOption,
    SessionsOption,
    ShardsOption,
    ShowTextOption,
    ThreadsOption,
    TokensOption,
    WandbOption,
)

if TYPE_CHECKING:
    from kvcompress_eval.suite.settings import SuiteSettings

SESSIONS = Path("examples/sessions.jsonl")
"""The project's own: what they say may be shown."""


def run_command(
    codec: CodecOption = ["all"],  # noqa: B006
    model: ModelOption = DEFAULT_MODEL,
    codec_dir: CodecDirOption = None,
    sessions: SessionsOption = None,
    out: OutOption = Path("reports/suite"),
    quick: QuickOption = False,
    calibration: CalibrationOption = None,
    shards: ShardsOption = None,
    tokens: TokensOption = None,
    continuation: ContinuationOption = None,
    count: CountOption = None,
    hops: HopsOption = None,
    curve: CurveOption = False,
    trade_off: RecomputeOption = False,
    go_on: GoOnOption = False,
    show_text: ShowTextOption = False,
    threads: ThreadsOption = 2,
    wandb: WandbOption = False,
    readme: ReadmeOption = False,
) -> None:
    """Measure codecs on recorded sessions after a true decode and resume, and write the report."""
    import torch

    from kvcompress_eval.baselines.registry import Own
    from kvcompress_eval.suite.job import Job
    from kvcompress_eval.suite.publish import log_to_wandb, write_readme
    from kvcompress_eval.suite.run import run_suite
    from kvcompress_eval.suite.settings import for_model
    from kvcompress_eval.suite.spoken import spoken_command

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
        own=Own(codec_dir or known.codec, curve=curve, trade_off=trade_off),
        command=spoken_command(sys.argv[1:]),
        go_on=go_on,
        show_text=show_text or is_own(places),
    )

    given = {"tokens": tokens, "continuation_tokens": continuation, "count": count, "hops": hops}

    def size(parameters: int) -> SuiteSettings:
        asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(for_model(parameters, quick=quick), **asked)

    result = run_suite(job, size)
    typer.echo(f"{(out / 'report.md').read_text(encoding='utf-8')}\nreport: {out / 'report.html'}")
    if readme:
        write_readme(result, Path("README.md"))
    if wandb:
        log_to_wandb(result, out)


def is_own(sessions: Path) -> bool:
    """Tell whether a file of sessions is the one that comes with the project."""
    own = Path(__file__).parents[2] / SESSIONS
    return own.is_file() and sessions.resolve() == own.resolve()
