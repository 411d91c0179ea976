"""Options of `kvcompress eval run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHAT, FITTED, SIZE = "What is measured", "What baselines are fitted to", "Size of the run"

CodecOption = Annotated[list[str], typer.Option(help="Codec family, codec directory, or all; give several for more.")]
ModelOption = Annotated[
    str, typer.Option(help="Model: a bundled name, a directory, a GGUF file, or a Hub id such as user/repo.")
]
CodecDirOption = Annotated[
    str | None,
    typer.Option(
        help="Codec to measure as family tinyvae: a name from `kvcompress codecs list`, or a directory.",
        show_default="the installed one that fits the model",
    ),
]
SessionsOption = Annotated[
    Path | None,
    typer.Option(help="JSON lines of sessions.", show_default="the examples, of the bundled model"),
]
OutOption = Annotated[Path, typer.Option("-o", "--output", "--out", help="Directory for rows and report.")]
RowsOption = Annotated[
    Path,
    typer.Option("-o", "--output", "--out", help="Directory for rows and report; rows of an earlier run are kept."),
]
GoOnOption = Annotated[bool, typer.Option("--resume", help="Continue from the rows in the output directory.")]
ThreadsOption = Annotated[int, typer.Option(help="Number of threads.", min=1)]
WandbOption = Annotated[bool, typer.Option("--wandb", help="Also log to Weights & Biases, offline by default.")]

CurveOption = Annotated[
    bool,
    typer.Option(
        "--curve",
        help="Also measure this project's codecs at fixed QPs, not only at their qualities.",
        rich_help_panel=WHAT,
    ),
]
RecomputeOption = Annotated[
    bool,
    typer.Option(
        "--trade-off",
        help="Also measure the codecs that recompute layers.",
        rich_help_panel=WHAT,
    ),
]
ShowTextOption = Annotated[
    bool,
    typer.Option(
        "--show-text",
        help="Show the text of sessions in the report. Do not publish text that is not yours.",
        rich_help_panel=WHAT,
    ),
]

CalibrationOption = Annotated[
    Path | None,
    typer.Option(help="Sessions to fit baselines to.", show_default="the unmeasured ones", rich_help_panel=FITTED),
]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Instead of them: shards from `kvcompress harvest` to fit baselines to.", rich_help_panel=FITTED),
]

QuickOption = Annotated[
    bool, typer.Option("--quick", help="Finish in minutes, with few sessions and points.", rich_help_panel=SIZE)
]
TokensOption = Annotated[
    int | None,
    typer.Option(help="Number of tokens of each session to store.", min=32, show_default="1024", rich_help_panel=SIZE),
]
ContinuationOption = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens to predict after them; results are given over the first 128 and over all.",
        min=64,
        show_default="128; 512 for a large model",
        rich_help_panel=SIZE,
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(
        help="Number of sessions to measure.", min=1, show_default="24; fewer with --quick", rich_help_panel=SIZE
    ),
]
HopsOption = Annotated[
    int | None,
    typer.Option(
        help="Number of rounds of saving and resuming a session.", min=0, show_default="10", rich_help_panel=SIZE
    ),
]
