"""`kvcompress resume`: continue a stored session where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import (
    DEFAULT_MAX_MEMORY,
    LINES,
    CodecOption,
    DtypeOption,
    JsonOption,
    KvzArgument,
    MaxMemoryOption,
    ModelOption,
    SpecialTokensOption,
    show,
)
from kvcompress.cli.waiting import waiting
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.hf.types import Cache, CausalLM, Tokenizer
    from kvcompress.snapshot import KVSnapshot


def resume(
    file: KvzArgument,
    model: ModelOption = DEFAULT_MODEL,
    codec: CodecOption = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What the user says next; without it the model continues where the session stopped."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Append the prompt as plain text, without the chat template.")
    ] = False,
    special_tokens: SpecialTokensOption = False,
    max_new_tokens: Annotated[int, typer.Option(help="Largest number of tokens to generate.", min=0)] = 64,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 always takes the most likely token.", min=0.0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Random seed for sampling.")] = 0,
    dtype: DtypeOption = "float32",
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    as_json: JsonOption = False,
) -> None:
    """Restore a session and let the model continue it."""
    from kvcompress.codec.registry import load_snapshot
    from kvcompress.hf import load_model, recompute_with

    with waiting("resume", "loading the model") as stage:
        language_model, tokenizer = load_model(model, dtype)
        stage("decoding")
        snapshot = load_snapshot(file, codec, recompute_with(language_model, tokenizer), max_memory)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    if snapshot.origin.dtype != dtype:
        typer.echo(f"note: recorded in {snapshot.origin.dtype}, going on in {dtype}", err=True)
    pieces: list[str] = []
    write = pieces.append if as_json else lambda piece: typer.echo(shown(piece, keep=LINES), nl=False)
    new_ids = go_on(
        language_model,
        tokenizer,
        snapshot,
        prompt,
        write,
        max_new_tokens,
        plain=plain,
        special_tokens=special_tokens,
        temperature=temperature,
        seed=seed,
    )
    if as_json:
        show({"tokens": snapshot.tokens, "new_token_ids": new_ids, "text": "".join(pieces)}, as_json=True)
    else:
        typer.echo()


def go_on(
    model: CausalLM,
    tokenizer: Tokenizer,
    snapshot: KVSnapshot,
    prompt: str | None,
    write: Callable[[str], object],
    max_new_tokens: int,
    *,
    plain: bool = False,
    special_tokens: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    cache: Cache | None = None,
) -> list[int]:
    """Let the model go on from a snapshot, write its text piece by piece, and return its tokens.

    `cache` is what was restored of the snapshot already; without it that happens here.
    """
    from kvcompress.hf import restore
    from kvcompress.hf.conversation import stop_ids
    from kvcompress.hf.generation import TextStream, generate_from

    restored = restore(snapshot, model, tokenizer=tokenizer, copy=False) if cache is None else cache
    cache, pending, position = _start(model, tokenizer, snapshot, restored, prompt, plain, special_tokens)
    stream = TextStream(tokenizer, write, [*snapshot.token_ids.tolist()[:position], *pending])
    new_ids = generate_from(
        model,
        cache,
        pending,
        next_position=position,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids(model, tokenizer),
        on_token=stream,
        temperature=temperature,
        seed=seed,
    )
    stream.close()
    return new_ids


def _start(
    model: CausalLM,
    tokenizer: Tokenizer,
    snapshot: KVSnapshot,
    cache: Cache,
    prompt: str | None,
    plain: bool,
    special_tokens: bool,
) -> tuple[Cache, list[int], int]:
    """Return the cache to go on from, the tokens to feed and the position of the first of them."""
    from kvcompress.data.chat_template import has_template
    from kvcompress.data.text_files import without_mark
    from kvcompress.hf.conversation import turn_start
    from kvcompress.hf.generation import resume_start
    from kvcompress.hf.special_tokens import plain_ids, require_text

    places = [layer.positions for layer in snapshot.layers]
    prompt = without_mark(prompt or "")
    require_text(prompt, "--prompt")
    if not prompt or plain or not has_template(tokenizer):
        prompt_ids = plain_ids(tokenizer, prompt, special_tokens=special_tokens) if prompt else []
        return cache, *resume_start(cache, snapshot.token_ids, prompt_ids, layer_positions=places)
    from kvcompress.data.next_turn import OUTSIDE_THE_TEMPLATE, next_turn_of

    turn = next_turn_of(tokenizer, snapshot, prompt, special_tokens=special_tokens)
    if not turn.told:
        sys.stderr.write(f"note: {OUTSIDE_THE_TEMPLATE}.\n")
    return turn_start(model, snapshot, cache, turn.token_ids, turn.kept)
