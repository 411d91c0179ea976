"""Options of `kvcompress encode`, by the group that `--help` shows them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.hub.bundled import DEFAULT_MODEL

RECOMPUTE, TOKENS, WEIGHTS = "Recomputed layers", "Tiers by token (a plan)", "Other weights"

RawArgument = Annotated[
    Path, typer.Argument(help="Raw snapshot that `kvcompress record` wrote.", metavar="RAW.safetensors")
]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="File to write (.kvz); - is standard output.")]
QualityOption = Annotated[
    str | None,
    typer.Option(
        help="How much the model's predictions may change: transparent, high or usable. The codec was verified for "
        "each of them (`kvcompress codecs show`).",
        show_default="transparent",
    ),
]
SizeRatioOption = Annotated[
    float | None,
    typer.Option(help="Instead of --quality: how many times smaller than the 16-bit cache the file is, within 3 %."),
]
MaxKlOption = Annotated[
    float | None,
    typer.Option(
        help="Instead of --quality: the largest mean KL divergence in nats, measured on this session. Runs the model."
    ),
]
LosslessOption = Annotated[
    bool, typer.Option("--lossless", help="Instead of --quality: restore the identical bits. Needs no codec.")
]
EncodeModelOption = Annotated[
    str | None,
    typer.Option(
        help="Model to run for --max-kl, a plan, --recompute-layers, --link or --allow-other-weights.",
        show_default=DEFAULT_MODEL,
    ),
]
LinkOption = Annotated[
    float | None,
    typer.Option(
        metavar="MBIT/S",
        help="Speed of a network link: choose the --recompute-layers with the lowest time to first token.",
        rich_help_panel=RECOMPUTE,
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        help="auto: compare plans of several scorers and keep the best; quick: use the first scorer only; none: code "
        "all tokens alike.",
        show_default="none",
        rich_help_panel=TOKENS,
    ),
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Scorer that ranks the tokens; give several to compare them.",
        show_default="learned, context_reconstruction",
        rich_help_panel=TOKENS,
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Regular expression: code the tokens that it matches fine, whatever their score.", rich_help_panel=TOKENS
    ),
]
KeepMessageOption = Annotated[
    list[int] | None,
    typer.Option(help="Number of a message to code fine, from 0; -1 is the last.", rich_help_panel=TOKENS),
]
KeepFractionOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the tokens to keep in memory; the others are dropped from every layer.",
        show_default="1",
        rich_help_panel=TOKENS,
    ),
]
GuaranteeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="KIND=TIER: lowest tier for tokens of an anchor kind (docs/pruning.md lists kinds and tiers).",
        rich_help_panel=TOKENS,
    ),
]
PlanTableOption = Annotated[
    Path | None,
    typer.Option(
        help="JSON file to write the plan to: tier, bits, anchors and scores of each token, and all candidates.",
        rich_help_panel=TOKENS,
    ),
]
HistoryOption = Annotated[
    Path | None,
    typer.Option(
        help="JSON file with the results of earlier comparisons: read to choose candidates, then updated.",
        rich_help_panel=TOKENS,
    ),
]
EvidenceOption = Annotated[
    Path | None,
    typer.Option(
        help="Evidence that `kvcompress record --evidence` wrote; without it the model collects it again.",
        rich_help_panel=TOKENS,
    ),
]
OtherWeightsOption = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights",
        help="Accept a session that other weights of the codec's model recorded, such as a fine-tuned model. What it "
        "loses is measured, so it needs --max-kl, or --quality with --sessions.",
        rich_help_panel=WEIGHTS,
    ),
]
SessionsOption = Annotated[
    Path | None,
    typer.Option(
        help="JSON lines of sessions on which --quality is measured with these weights, once.",
        rich_help_panel=WEIGHTS,
    ),
]
