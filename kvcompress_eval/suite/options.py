"""Options of `kvcompress eval run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CodecOption = Annotated[list[str], typer.Option(help="Codec family, codec directory, or all; repeat it.")]
ModelOption = Annotated[str, typer.Option(help="Bundled model, smollm2, model directory, GGUF file or Hub id.")]
CodecDirOption = Annotated[
    str | None, typer.Option(help="Codec directory that the family tinyvae stands for.", show_default="the bundled one")
]
SessionsOption = Annotated[
    Path | None, typer.Option(help="JSON lines of recorded sessions.", show_default="examples/sessions.jsonl")
]
OutOption = Annotated[Path, typer.Option(help="Directory of rows and report.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A look in minutes: few sessions and points.")]
CalibrationOption = Annotated[
    Path | None, typer.Option(help="Sessions that baselines are fitted to; the unmeasured ones if not given.")
]
ShardsOption = Annotated[
    Path | None, typer.Option(help="Harvest of `kvcompress harvest` that baselines are fitted to instead.")
]
TokensOption = Annotated[int | None, typer.Option(help="Tokens stored of each session.", min=32)]
ContinuationOption = Annotated[
    int | None,
    typer.Option(help="Tokens predicted after them; figures are over 128 and over all.", min=64),
]
CountOption = Annotated[int | None, typer.Option(help="Sessions measured.", min=1)]
HopsOption = Annotated[int | None, typer.Option(help="Times a session is saved and resumed on its way.", min=0)]
CurveOption = Annotated[
    bool, typer.Option("--curve", help="Measure fixed QPs of this project's codecs, not its promises only.")
]
RecomputeOption = Annotated[
    bool, typer.Option("--trade-off", help="Measure the codecs of a directory that leave layers to the model, too.")
]
GoOnOption = Annotated[bool, typer.Option("--resume", help="Go on from the rows found in OUT.")]
ShowTextOption = Annotated[
    bool, typer.Option("--show-text", help="Print what a session says, which of others' may not be published.")
]
ThreadsOption = Annotated[int, typer.Option(help="Threads of torch.", min=1)]
WandbOption = Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases too; offline unless told else.")]
ReadmeOption = Annotated[bool, typer.Option("--readme", help="Write the table into README.md.")]
