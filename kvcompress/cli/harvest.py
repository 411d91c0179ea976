"""`kvcompress harvest`: write the caches of recorded sessions as shards, to fit and train on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import ForceOption, JsonOption, ModelOption, progress_bar, show
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_MODEL


def harvest(
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write the shards to.")],
    model: ModelOption = DEFAULT_MODEL,
    tokens: Annotated[
        int | None,
        typer.Option(help="Use at most this many tokens of each session.", min=2, show_default="the model's context"),
    ] = None,
    continuation_tokens: Annotated[
        int,
        typer.Option(
            help="Tokens at the end of each session that are kept as its continuation, to measure fidelity on.", min=1
        ),
    ] = 256,
    calibration_share: Annotated[
        float, typer.Option(help="Share of the sessions held out to measure quality on.", min=0, max=1)
    ] = 0.25,
    gradient_sessions: Annotated[int, typer.Option(help="Number of sessions to compute gradients for.", min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="Data type of the shards: float16 or bfloat16.")] = "float16",
    threads: Annotated[int | None, typer.Option(help="Number of threads.", min=1, show_default="all cores")] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the split of sessions and for sampling.")] = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model once over recorded sessions and keep what a fit needs: caches, gradients, single tokens.

    Writes one shard (a raw snapshot) for each session, and index.jsonl, which `datasets` reads. An interrupted harvest
    continues where it stopped. With --force the old shards are kept until the new ones are complete, so both need disk
    space. `kvcompress fit --shards` makes codecs from the shards.
    """
    import torch

    from kvcompress.data.harvest import require_place_of_shards, write_shards
    from kvcompress.data.shards import HarvestSettings
    from kvcompress.hf import load_model

    if dtype not in ("float16", "bfloat16"):
        raise InputError(f"shards of {dtype!r} are not written", "Use float16 or bfloat16")
    require_place_of_shards(output, force)
    if threads:
        torch.set_num_threads(threads)
    settings = HarvestSettings(
        tokens=tokens,
        continuation_tokens=continuation_tokens,
        calibration_share=calibration_share,
        gradient_sessions=gradient_sessions,
        dtype=dtype,
        seed=seed,
    )
    language_model, tokenizer = load_model(model)
    with progress_bar("harvest") as progress:
        summary = write_shards(
            language_model, tokenizer, sessions, output, progress, settings=settings, force=force, announce=_say
        )
    show(summary, as_json=as_json)


def _say(line: str) -> None:
    sys.stderr.write(f"{shown(line)}.\n")
