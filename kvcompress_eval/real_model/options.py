"""Options of `kvcompress eval real-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SIZE, BESIDE = "Size of the run", "What stands beside it"

ModelOption = Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")]
CodecOption = Annotated[str, typer.Option(help="Codec directory; all that it holds (recompute-<m>) are measured.")]
SessionsOption = Annotated[Path, typer.Option(help="JSON lines of sessions that fitted nothing.")]
OtherOption = Annotated[
    Path | None, typer.Option(help="Sessions of another source than the codec's.", rich_help_panel=BESIDE)
]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Harvest that KVTC is fitted to; KVTC is left out else.", rich_help_panel=BESIDE),
]
SettingOption = Annotated[
    list[str], typer.Option(help="NAME=DIR of a further codec of the model; repeat it.", rich_help_panel=BESIDE)
]
FitFactsOption = Annotated[
    list[Path], typer.Option(help="What `kvcompress fit --json` printed; repeat it.", rich_help_panel=BESIDE)
]
CountOption = Annotated[int, typer.Option(help="Sessions measured.", min=1, rich_help_panel=SIZE)]
OtherCountOption = Annotated[int, typer.Option(help="Sessions of the other source.", min=1, rich_help_panel=SIZE)]
TokensOption = Annotated[int, typer.Option(help="Tokens stored of each session.", min=32, rich_help_panel=SIZE)]
ContinuationOption = Annotated[int, typer.Option(help="Tokens predicted after them.", min=128, rich_help_panel=SIZE)]
KvtcSessionsOption = Annotated[
    int, typer.Option(help="Sessions that KVTC is measured on.", min=1, rich_help_panel=SIZE)
]
KvtcFitSessionsOption = Annotated[
    int, typer.Option(help="Harvested sessions that it is fitted to.", min=2, rich_help_panel=SIZE)
]
TimedSessionsOption = Annotated[int, typer.Option(help="Sessions that are timed.", min=0, rich_help_panel=SIZE)]
