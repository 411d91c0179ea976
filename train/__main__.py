"""Training recipes of this repository: `python -m train ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Train the bundled reference model, record its sessions, compose others. Codecs: `kvcompress train`."""


@app.command()
def lm(
    corpus: Annotated[
        list[Path], typer.Option(help="JSON lines of dialogues or texts, gzipped or not; give several for more.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the model; a run found there is resumed.")],
    short_steps: Annotated[int, typer.Option(help="Steps of 16 x 256 tokens.")] = 1000,
    middle_steps: Annotated[int, typer.Option(help="Steps of 8 x 512 tokens.")] = 1350,
    long_steps: Annotated[int, typer.Option(help="Steps of 2 x 2,048 tokens.")] = 850,
    threads: Annotated[int, typer.Option(help="Number of threads.")] = 2,
    compile_model: Annotated[
        bool, typer.Option("--compile", help="torch.compile the model; needs a C++ compiler.")
    ] = False,
    report_every: Annotated[int, typer.Option(help="Steps between checkpoints with held-out bits per byte.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="Highest rate of both optimisers.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    start_from: Annotated[Path | None, typer.Option(help="Model to start from; takes its tokenizer too.")] = None,
    stop_after: Annotated[int | None, typer.Option(help="Stop after so many steps; run again to go on.")] = None,
) -> None:
    """Train the reference language model, resumably."""
    from train.lm.curriculum import Phase, Recipe
    from train.lm.run import train_lm

    phases = (Phase(short_steps, 256, 16), Phase(middle_steps, 512, 8), Phase(long_steps, 2048, 2))
    train_lm(
        corpus,
        out,
        Recipe(phases, matrix_lr=learning_rate, embedding_lr=learning_rate, seed=seed),
        threads=threads,
        compile_model=compile_model,
        report_every=report_every,
        stop_after=stop_after,
        start_from=start_from,
    )


@app.command()
def sessions(
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines file to write.")],
    model: Annotated[Path, typer.Option(help="The reference model.")] = Path("checkpoints/reference-lm"),
    count: Annotated[int, typer.Option(help="Number of conversations.", min=1)] = 64,
    shortest: Annotated[int, typer.Option(help="Fewest tokens before the closing questions.")] = 1050,
    longest: Annotated[int, typer.Option(help="Most tokens before the closing questions.")] = 1650,
    batch: Annotated[int, typer.Option(help="Conversations sampled at once.")] = 32,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
) -> None:
    """Record conversations with the model: facts and questions are scripted, everything else is sampled."""
    from kvcompress.hf import load_model
    from train.sessions import Recorder, record, write_sessions

    language_model, tokenizer = load_model(model)
    rows = record(
        Recorder(language_model, tokenizer), count, shortest=shortest, longest=longest, seed=seed, batch=batch
    )
    typer.echo(f"{write_sessions(out, rows)} sessions in {out}")


@app.command()
def texts(
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines file to write.")],
    model: Annotated[Path, typer.Option(help="Any causal language model with a tokenizer.")],
    count: Annotated[int, typer.Option(help="Number of texts.", min=1)] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.", min=1)] = 480,
    batch: Annotated[int, typer.Option(help="Texts sampled together.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
) -> None:
    """Let a model without a chat template write texts, as sessions to fit a codec on and to measure with."""
    from kvcompress.hf import load_model
    from train.sessions import Recorder, record_texts, write_sessions

    language_model, tokenizer = load_model(model)
    rows = record_texts(Recorder(language_model, tokenizer), count, tokens=tokens, seed=seed, batch=batch)
    typer.echo(f"{write_sessions(out, rows)} texts in {out}")


@app.command()
def compose(
    corpus: Annotated[
        list[Path], typer.Option(help="JSON lines of dialogues or texts, gzipped or not; give several for more.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines file to write.")],
    count: Annotated[int, typer.Option(help="Number of conversations.", min=1)] = 320,
    chars: Annotated[int, typer.Option(help="Characters of a conversation, about.")] = 5200,
    held_out: Annotated[bool, typer.Option("--held-out", help="Draw from the held-out documents.")] = False,
    category: Annotated[
        str | None, typer.Option(help="Category of all conversations.", show_default="a mixture")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 2,
) -> None:
    """Compose conversations from the corpus with planted facts, to fit a codec on or to measure the model with."""
    import random

    from train.lm.compose import category_of, composed_session
    from train.lm.corpus import load_corpus
    from train.sessions import write_sessions

    loaded = load_corpus(corpus, held_out=held_out)
    kinds = [category or category_of(n) for n in range(count)]
    rows = (
        composed_session(loaded, random.Random(f"{seed}:{n}"), chars, f"c{n:04d}", kind) for n, kind in enumerate(kinds)
    )
    typer.echo(f"{write_sessions(out, rows)} sessions in {out}")


@app.command()
def mixture(
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines file to write.")],
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model: its tokenizer counts.")],
    chats: Annotated[
        list[Path] | None, typer.Option(help="JSON lines of dialogues, gzipped or not; repeat it to take turns.")
    ] = None,
    novels: Annotated[Path | None, typer.Option(help="JSON lines of long texts, gzipped or not.")] = None,
    count: Annotated[int, typer.Option(help="Sessions: half novels, half chats.", min=1)] = 120,
    tokens: Annotated[int, typer.Option(help="Fewest tokens of a session.", min=1)] = 1344,
    skip_novels: Annotated[int, typer.Option(help="Novels that other files have taken.", min=0)] = 0,
    skip_chats: Annotated[int, typer.Option(help="Dialogues of each corpus that other files have taken.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Seed; one for all files that must share no document.")] = 7,
) -> None:
    """Compose sessions for a real model: excerpts of novels, and whole dialogues joined, none of them twice."""
    import random

    from train.mixture import Mixture, Pool, token_counter
    from train.sessions import write_sessions

    texts = None if novels is None else Pool.of(novels, "text", seed, skip_novels)
    pools = [Pool.of(path, "messages", seed, skip_chats) for path in chats or []]
    places = random.Random(f"{seed}:{skip_novels}:places")
    composed = Mixture(texts, pools, tokens, token_counter(model), places)
    typer.echo(f"{write_sessions(out, composed.rows(count))} sessions in {out}")
    typer.echo(f"A file that shares no document with it: {composed.used()}")


@app.command()
def measure(
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions the model has not seen.")],
    model: Annotated[Path, typer.Option(help="The model.")] = Path("checkpoints/reference-lm"),
    most_sessions: Annotated[int, typer.Option(help="Largest number of sessions to measure.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the planted facts asked at long distance.")] = 3,
    card: Annotated[bool, typer.Option("--card", help="Write the model's card from the result.")] = False,
) -> None:
    """Measure what the model's context is worth, and its exact answers to planted facts by distance; prints JSON."""
    import json

    from train.context import measure_model

    measured = measure_model(model, sessions, most_sessions, seed)
    typer.echo(json.dumps(measured, indent=1))
    if card:
        from train.lm.card import write_card

        write_card(model, measured)


@app.command()
def index(
    root: Annotated[Path, typer.Option(help="Directory of bundled checkpoints.")] = Path("checkpoints"),
) -> None:
    """Write the digests of all bundled checkpoints, which loading by name verifies."""
    import json

    from kvcompress.hub.bundled import weights_digest

    names = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("**/model.safetensors"))
    digests = {name: weights_digest(root / name) for name in names}
    (root / "index.json").write_text(json.dumps(digests, indent=1) + "\n")
    typer.echo(json.dumps(digests, indent=1))


def run() -> None:
    """Run a command; what a user can cause ends in one line and exit status 1."""
    from kvcompress.errors import KVCompressError

    try:
        app()
    except KVCompressError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    run()
