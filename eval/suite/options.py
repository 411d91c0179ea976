"""Options of `python -m eval run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CodecOption = Annotated[list[str], typer.Option(help="Codec family, codec directory, or all; give several for more.")]
ModelOption = Annotated[str, typer.Option(help="Model: a bundled name, smollm2, a directory, a GGUF file or a Hub id.")]
CodecDirOption = Annotated[
    str | None, typer.Option(help="Codec directory to measure as family tinyvae.", show_default="the bundled one")
]
SessionsOption = Annotated[
    Path | None, typer.Option(help="JSON lines of sessions.", show_default="examples/sessions.jsonl")
]
OutOption = Annotated[Path, typer.Option(help="Directory for rows and report.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Finish in minutes, with few sessions and points.")]
CalibrationOption = Annotated[
    Path | None, typer.Option(help="Sessions to fit baselines to.", show_default="the unmeasured ones")
]
ShardsOption = Annotated[
    Path | None, typer.Option(help="Instead of them: shards from `kvcompress harvest` to fit baselines to.")
]
TokensOption = Annotated[int | None, typer.Option(help="Number of tokens of each session to store.", min=32)]
ContinuationOption = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens to predict after them; results are given over the first 128 and over all.", min=64
    ),
]
CountOption = Annotated[int | None, typer.Option(help="Number of sessions to measure.", min=1)]
HopsOption = Annotated[int | None, typer.Option(help="Number of rounds of saving and resuming a session.", min=0)]
CurveOption = Annotated[
    bool, typer.Option("--curve", help="Also measure this project's codecs at fixed QPs, not only at their qualities.")
]
RecomputeOption = Annotated[bool, typer.Option("--trade-off", help="Also measure the codecs that recompute layers.")]
GoOnOption = Annotated[bool, typer.Option("--resume", help="Continue from the rows in OUT.")]
ShowTextOption = Annotated[
    bool,
    typer.Option("--show-text", help="Show the text of sessions in the report. Do not publish text that is not yours."),
]
ThreadsOption = Annotated[int, typer.Option(help="Number of threads.", min=1)]
WandbOption = Annotated[bool, typer.Option("--wandb", help="Also log to Weights & Biases, offline by default.")]
ReadmeOption = Annotated[bool, typer.Option("--readme", help="Write the table into README.md.")]
