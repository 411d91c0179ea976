"""Command line of the workshop: `python -m train ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Recipes that train the bundled reference model and record sessions with it."""


@app.command()
def lm(
    corpus: Annotated[list[Path], typer.Option(help="JSON lines of dialogues or texts, gzipped or not; repeat it.")],
    out: Annotated[Path, typer.Option(help="Directory of the model; a run found there is resumed.")],
    short_steps: Annotated[int, typer.Option(help="Steps of 16 x 256 tokens.")] = 1000,
    middle_steps: Annotated[int, typer.Option(help="Steps of 8 x 512 tokens.")] = 1350,
    long_steps: Annotated[int, typer.Option(help="Steps of 2 x 2,048 tokens.")] = 650,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    compile_model: Annotated[bool, typer.Option("--compile", help="torch.compile the model; needs a C++ compiler.")] = False,
    report_every: Annotated[int, typer.Option(help="Steps between checkpoints with held-out bits per byte.")] = 100,
) -> None:
    """Train the reference language model, resumably."""
    from train.lm.curriculum import Phase, Recipe
    from train.lm.run import train_lm

    phases = (Phase(short_steps, 256, 16), Phase(middle_steps, 512, 8), Phase(long_steps, 2048, 2))
    train_lm(corpus, out, Recipe(phases), threads=threads, compile_model=compile_model, report_every=report_every)


if __name__ == "__main__":
    app()
