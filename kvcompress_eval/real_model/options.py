"""Options of `kvcompress eval real-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SIZE, BESIDE = "Size of the run", "What stands beside it"

ModelOption = Annotated[str, typer.Option(help="Model: a bundled name or a directory.")]
CodecOption = Annotated[str, typer.Option(help="Codec directory; its subdirectories recompute-<m> are measured too.")]
SessionsOption = Annotated[Path, typer.Option(help="JSON lines of sessions held out of the fit.")]
OtherOption = Annotated[
    Path | None, typer.Option(help="JSON lines of sessions from another source.", rich_help_panel=BESIDE)
]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Shards to fit KVTC to; without them KVTC is left out.", rich_help_panel=BESIDE),
]
SettingOption = Annotated[
    list[str], typer.Option(help="NAME=DIR: also measure this codec; give several for more.", rich_help_panel=BESIDE)
]
FitFactsOption = Annotated[
    list[Path], typer.Option(help="Output of `kvcompress fit --json`; give several for more.", rich_help_panel=BESIDE)
]
CountOption = Annotated[int, typer.Option(help="Number of sessions to measure.", min=1, rich_help_panel=SIZE)]
OtherCountOption = Annotated[
    int, typer.Option(help="Number of sessions of the other source.", min=1, rich_help_panel=SIZE)
]
TokensOption = Annotated[
    int, typer.Option(help="Number of tokens of each session to store.", min=32, rich_help_panel=SIZE)
]
ContinuationOption = Annotated[
    int, typer.Option(help="Number of tokens to predict after them.", min=128, rich_help_panel=SIZE)
]
KvtcSessionsOption = Annotated[
    int, typer.Option(help="Number of sessions to measure KVTC on.", min=1, rich_help_panel=SIZE)
]
KvtcFitSessionsOption = Annotated[
    int, typer.Option(help="Number of harvested sessions to fit KVTC to.", min=2, rich_help_panel=SIZE)
]
TimedSessionsOption = Annotated[int, typer.Option(help="Number of sessions to time.", min=0, rich_help_panel=SIZE)]
