"""`kvcompress eval real-model`: the report of a codec on a model that people run."""

from __future__ import annotations

import json
import sys

import typer

from kvcompress.cli.console import JsonOption
from kvcompress.cli.extras import require_packages
from kvcompress_eval.real_model.options import (
    CodecOption,
    ContinuationOption,
    CountOption,
    FitFactsOption,
    KvtcFitSessionsOption,
    KvtcSessionsOption,
    ModelOption,
    OtherCountOption,
    OtherOption,
    SessionsOption,
    SettingOption,
    ShardsOption,
    TimedSessionsOption,
    TokensOption,
)
from kvcompress_eval.suite.options import RowsOption, ThreadsOption


def real_model_command(
    model: ModelOption,
    codec: CodecOption,
    sessions: SessionsOption,
    out: RowsOption,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
    other: OtherOption = None,
    shards: ShardsOption = None,
    setting: SettingOption = [],  # noqa: B006
    fit_facts: FitFactsOption = [],  # noqa: B006
    count: CountOption = 24,
    other_count: OtherCountOption = 12,
    tokens: TokensOption = 1024,
    continuation: ContinuationOption = 512,
    kvtc_sessions: KvtcSessionsOption = 8,
    kvtc_fit_sessions: KvtcFitSessionsOption = 24,
    timed_sessions: TimedSessionsOption = 3,
) -> None:
    """Measure a codec on a real model: sizes, damage, bounds, KVTC at equal KL, seconds; goes on where it stopped."""
    require_packages("the report", ("jinja2", "matplotlib"), "eval")
    import torch

    from kvcompress.cli.console import progress_bar
    from kvcompress_eval.real_model.run import Job, RealModelRun, RealModelSettings
    from kvcompress_eval.suite.spoken import spoken_command

    torch.set_num_threads(threads)
    line = spoken_command(sys.argv)
    job = Job(model, codec, tuple(setting), sessions, other, shards, tuple(fit_facts), out, line)
    sizes = (tokens, continuation, count, other_count, kvtc_sessions, kvtc_fit_sessions, timed_sessions)
    with progress_bar("real model") as progress:
        result = RealModelRun(job, RealModelSettings(*sizes), progress).run()
    typer.echo(json.dumps(result) if as_json else (out / "report.md").read_text(encoding="utf-8"))
