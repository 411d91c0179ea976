"""`kvcompress resume`: go on from a stored session exactly where it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import (
    LINES,
    CodecOption,
    DtypeOption,
    JsonOption,
    KvzArgument,
    ModelOption,
    printable,
    show,
)
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer
    from kvcompress.snapshot import KVSnapshot


def resume(
    file: KvzArgument,
    model: ModelOption = DEFAULT_MODEL,
    codec: CodecOption = None,
    prompt: Annotated[str | None, typer.Option(help="Say this first, as the user's next turn.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Append the prompt as it is, outside the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", min=0)] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Load a session and let the model go on."""
    from kvcompress.codec.registry import load_snapshot
    from kvcompress.hf import load_model, recompute_with, restore
    from kvcompress.hf.generation import TextStream, generate_from, resume_start

    language_model, tokenizer = load_model(model, dtype)
    snapshot = load_snapshot(file, codec, recompute_with(language_model, tokenizer))
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    cache = restore(snapshot, language_model, tokenizer=tokenizer, copy=False)
    prompt_ids = _prompt_ids(tokenizer, snapshot, prompt, plain) if prompt else []
    places = [layer.positions for layer in snapshot.layers]
    pending, position = resume_start(cache, snapshot.token_ids, prompt_ids, layer_positions=places)
    pieces: list[str] = []
    write = pieces.append if as_json else lambda piece: typer.echo(printable(piece, keep=LINES), nl=False)
    stream = TextStream(tokenizer, write, [*snapshot.token_ids.tolist(), *prompt_ids])
    stop = {tokenizer.eos_token_id} - {None}
    new_ids = generate_from(
        language_model,
        cache,
        pending,
        next_position=position,
        max_new_tokens=max_new_tokens,
        stop_ids=stop,
        on_token=stream,
        temperature=temperature,
        seed=seed,
    )
    stream.close()
    if as_json:
        show({"tokens": snapshot.tokens, "new_token_ids": new_ids, "text": "".join(pieces)}, as_json=True)
    else:
        typer.echo()


def _prompt_ids(tokenizer: Tokenizer, snapshot: KVSnapshot, prompt: str, plain: bool) -> list[int]:
    """Return the tokens of the prompt: a user turn under the chat template, or the bare text."""
    from kvcompress.data.sessions import text_ids
    from kvcompress.metrics.recall import turn_ids

    if plain or not getattr(tokenizer, "chat_template", None):
        return text_ids(tokenizer, prompt)
    return turn_ids(tokenizer, prompt, snapshot.token_ids.tolist())
