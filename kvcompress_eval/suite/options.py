"""Options of `kvcompress eval run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHAT, FITTED, SIZE = "What is measured", "What baselines are fitted to", "Size of the run"

CodecOption = Annotated[list[str], typer.Option(help="Codec family, codec directory, or all; repeat it.")]
ModelOption = Annotated[
    str, typer.Option(help="Bundled model, model directory, GGUF file, or Hub id such as user/repo.")
]
CodecDirOption = Annotated[
    str | None,
    typer.Option(
        help="Codec that the family tinyvae stands for: what `kvcompress codecs list` names, or a directory.",
        show_default="the one at hand that belongs to the model",
    ),
]
SessionsOption = Annotated[
    Path | None,
    typer.Option(help="JSON lines of recorded sessions.", show_default="the examples, of the bundled model"),
]
OutOption = Annotated[Path, typer.Option("-o", "--output", "--out", help="Directory of rows and report.")]
RowsOption = Annotated[
    Path, typer.Option("-o", "--output", "--out", help="Directory of rows and report; rows found there stay.")
]
GoOnOption = Annotated[bool, typer.Option("--resume", help="Go on from the rows found in the directory.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of torch.", min=1)]
WandbOption = Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases too; offline unless told else.")]

CurveOption = Annotated[
    bool,
    typer.Option(
        "--curve", help="Measure fixed QPs of this project's codecs, not its promises only.", rich_help_panel=WHAT
    ),
]
RecomputeOption = Annotated[
    bool,
    typer.Option(
        "--dial",
        help="Measure the codecs of a directory that leave layers to the model, too.",
        rich_help_panel=WHAT,
    ),
]
ShowTextOption = Annotated[
    bool,
    typer.Option(
        "--show-text",
        help="Print what a session says, which of others' may not be published.",
        rich_help_panel=WHAT,
    ),
]

CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        help="Sessions that baselines are fitted to.", show_default="the unmeasured ones", rich_help_panel=FITTED
    ),
]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Harvest of `kvcompress harvest` that baselines are fitted to instead.", rich_help_panel=FITTED),
]

QuickOption = Annotated[
    bool, typer.Option("--quick", help="A look in minutes: few sessions and points.", rich_help_panel=SIZE)
]
TokensOption = Annotated[
    int | None,
    typer.Option(help="Tokens stored of each session.", min=32, show_default="1024", rich_help_panel=SIZE),
]
ContinuationOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens predicted after them; figures are over 128 and over all.",
        min=64,
        show_default="128; 512 for a large model",
        rich_help_panel=SIZE,
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(help="Sessions measured.", min=1, show_default="24; fewer with --quick", rich_help_panel=SIZE),
]
HopsOption = Annotated[
    int | None,
    typer.Option(
        help="Times a session is saved and resumed on its way.", min=0, show_default="10", rich_help_panel=SIZE
    ),
]
