"""`kvcompress harvest`: caches of recorded sessions as shards to fit and train on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import ForceOption, JsonOption, ModelOption, progress_bar, show
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_MODEL


def harvest(
    sessions: Annotated[Path, typer.Option(help="JSON lines of recorded sessions.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the shards.")],
    model: ModelOption = DEFAULT_MODEL,
    tokens: Annotated[
        int | None, typer.Option(help="Cut sessions at so many tokens.", min=2, show_default="the model's context")
    ] = None,
    continuation_tokens: Annotated[
        int, typer.Option(help="Tokens at the end of each session that stand for what follows.", min=1)
    ] = 256,
    calibration_share: Annotated[
        float, typer.Option(help="Share of the sessions on which nothing is fitted but quality measured.", min=0, max=1)
    ] = 0.25,
    gradient_sessions: Annotated[int, typer.Option(help="Sessions whose gradients are kept.", min=1)] = 64,
    dtype: Annotated[str, typer.Option(help="Of the shards: float16 or bfloat16.")] = "float16",
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", min=1, show_default="all cores")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split and of sampled tokens.")] = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the model once over recorded sessions and keep what a fit needs: caches, gradients, single tokens.

    One shard a session (a raw snapshot file) and index.jsonl, which `datasets` reads. Killed, it goes on where it
    stopped. With --force the old shards stay until the new ones are whole, so both take room on the disk.
    `kvcompress fit --shards` makes codecs from it.
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
            language_model,
            tokenizer,
            sessions,
            output,
            progress,
            settings=settings,
            force=force,
            announce=_say,
        )
    show(summary, as_json=as_json)


def _say(line: str) -> None:
    sys.stderr.write(f"{shown(line)}.\n")
