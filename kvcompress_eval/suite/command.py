"""`kvcompress eval run`: the fidelity suite."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvcompress.cli.console import JsonOption
from kvcompress.cli.extras import require_packages
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
    as_json: JsonOption = False,
) -> None:
    """Measure codecs on recorded sessions after a true decode and resume, and write the report."""
    require_packages("the suite's report", ("jinja2", "matplotlib"), "eval")
    import torch

    from kvcompress_eval.baselines.registry import Own
    from kvcompress_eval.examples import example_sessions, is_example
    from kvcompress_eval.suite.job import Job
    from kvcompress_eval.suite.publish import log_to_wandb
    from kvcompress_eval.suite.run import run_suite
    from kvcompress_eval.suite.settings import for_model
    from kvcompress_eval.suite.spoken import spoken_command

    torch.set_num_threads(threads)
    places = sessions or example_sessions()
    job = Job(
        model=model,
        codecs=tuple(codec),
        sessions=places,
        out=out,
        calibration=calibration,
        shards=shards,
        own=Own(codec_dir or (DEFAULT_CODEC if model == DEFAULT_MODEL else None), curve=curve, trade_off=trade_off),
        command=spoken_command(sys.argv),
        go_on=go_on,
        show_text=show_text or is_example(places),
    )

    given = {"tokens": tokens, "continuation_tokens": continuation, "count": count, "hops": hops}

    def size(parameters: int) -> SuiteSettings:
        asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(for_model(parameters, quick=quick), **asked)

    result = run_suite(job, size)
    page = f"{(out / 'report.md').read_text(encoding='utf-8')}\nreport: {out / 'report.html'}"
    typer.echo(json.dumps(result) if as_json else page)
    if wandb:
        log_to_wandb(result, out)
