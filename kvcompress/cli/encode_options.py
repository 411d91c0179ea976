"""Options of `kvcompress encode`, by the group that `--help` shows them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.hub.bundled import DEFAULT_MODEL

RECOMPUTE, TOKENS, WEIGHTS = "Recomputed layers", "Tiers by token (a plan)", "Other weights"

RawArgument = Annotated[Path, typer.Argument(help="Raw snapshot (.safetensors).", metavar="RAW.safetensors")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="File to write (.kvz); - is standard output.")]
QualityOption = Annotated[
    str | None,
    typer.Option(
        help="transparent, high or usable: fidelity as the codec's calibration measured it.",
        show_default="transparent",
    ),
]
SizeRatioOption = Annotated[
    float | None, typer.Option(help="Or: raw 16-bit size over file size, at least this or within 3 % of it.")
]
MaxKlOption = Annotated[
    float | None,
    typer.Option(help="Or: the smallest file whose mean KL (nats), resumed on the session's own end, is so much."),
]
LosslessOption = Annotated[bool, typer.Option("--lossless", help="Or: give the identical bits back; needs no codec.")]
EncodeModelOption = Annotated[
    str | None,
    typer.Option(
        help="Model that --max-kl, plans, recomputed layers and other weights run.", show_default=DEFAULT_MODEL
    ),
]
LinkOption = Annotated[
    float | None,
    typer.Option(
        metavar="MBIT/S",
        help="Choose --recompute-layers for the lowest time to the first token over such a link.",
        rich_help_panel=RECOMPUTE,
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        help="auto: compare the plans of several scorers; quick: follow the first scorer; none: all tokens alike.",
        show_default="none",
        rich_help_panel=TOKENS,
    ),
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Scorer that plans follow; repeat it to compare several.",
        show_default="learned, context_reconstruction",
        rich_help_panel=TOKENS,
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(help="Regular expression: what it matches is coded fine, whatever its score.", rich_help_panel=TOKENS),
]
KeepMessageOption = Annotated[
    list[int] | None,
    typer.Option(help="Index of a message to be coded fine; negative from the end.", rich_help_panel=TOKENS),
]
KeepFractionOption = Annotated[
    float | None,
    typer.Option(
        help="Share of the tokens that stays in memory; the others leave every layer.", rich_help_panel=TOKENS
    ),
]
GuaranteeOption = Annotated[
    list[str] | None,
    typer.Option(help="KIND=TIER: tier below which anchors of a kind never fall.", rich_help_panel=TOKENS),
]
PlanTableOption = Annotated[
    Path | None,
    typer.Option(
        help="JSON file to write: token, tier, bits, anchors, score parts, candidates.", rich_help_panel=TOKENS
    ),
]
HistoryOption = Annotated[
    Path | None,
    typer.Option(help="JSON file of earlier comparisons, which steer this one.", rich_help_panel=TOKENS),
]
EvidenceOption = Annotated[
    Path | None,
    typer.Option(help="What scorers look at, as `kvcompress record --evidence` stored it.", rich_help_panel=TOKENS),
]
OtherWeightsOption = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights",
        help="Take a session of other weights of the codec's model, measured: with --max-kl, or --quality.",
        rich_help_panel=WEIGHTS,
    ),
]
SessionsOption = Annotated[
    Path | None,
    typer.Option(
        help="Sessions that --quality is measured on with other weights; not needed again later.",
        rich_help_panel=WEIGHTS,
    ),
]
