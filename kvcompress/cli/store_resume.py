"""`kvcompress store resume`: let a model go on from a stored state, and keep what is said."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import LINES, DtypeOption, JsonOption, ModelOption, show
from kvcompress.cli.store_common import AtOption, LosslessOption, QualityOption, SessionArgument, StoreArgument, opened
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.snapshot import KVSnapshot
    from kvcompress.store.session import StoredSession

PARTS = "A part of it"
PromptOption = Annotated[
    str | None, typer.Option(help="Say this first, as the user's next turn.", show_default="nothing")
]
SaveOption = Annotated[
    bool, typer.Option("--save", help="Append the prompt and the answer; with --at, rewind to there first.")
]
TokensOption = Annotated[
    str | None,
    typer.Option(
        metavar="A:B",
        help="Restore these tokens only; the model reads the others.",
        show_default="all",
        rich_help_panel=PARTS,
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        metavar="A:B",
        help="Restore these layers only; the model computes the others.",
        show_default="all",
        rich_help_panel=PARTS,
    ),
]
OtherWeightsOption = Annotated[
    bool,
    typer.Option(
        "--other-weights",
        help="Go on with other weights of the same architecture, such as a fine-tune, and measure what that costs.",
    ),
]


def resume(
    store: StoreArgument,
    session: SessionArgument,
    at: AtOption = None,
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = "float32",
    prompt: PromptOption = None,
    save: SaveOption = False,
    quality: QualityOption = None,
    lossless: LosslessOption = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", min=0)] = 64,
    tokens: TokensOption = None,
    layers: LayersOption = None,
    other_weights: OtherWeightsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Load a state of a session and let the model go on."""
    from kvcompress.data.text_files import without_mark
    from kvcompress.hf.special_tokens import require_text

    prompt = without_mark(prompt or "")
    if save and not prompt:
        raise InputError("there is nothing to save without --prompt", "Say something, or leave --save out")
    if save and (tokens or layers):
        raise InputError("a part of a session is restored to be looked at", "Leave --save out")
    if other_weights and (save or tokens or layers):
        what = "with other weights a whole state is gone on from, and nothing of it is kept in the session"
        raise InputError(what, "Leave --save, --tokens and --layers out")
    from kvcompress.hf import load_model

    require_text(prompt, "--prompt")
    language_model, tokenizer = load_model(model, dtype)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    pieces: list[str] = []
    write = pieces.append if as_json else lambda piece: typer.echo(shown(piece, keep=LINES), nl=False)
    with opened(store) as found:
        held = found.session(session)
        if save:
            from kvcompress.data.next_turn import OUTSIDE_THE_TEMPLATE
            from kvcompress.store.wrapper import Session

            if at is not None:
                held.rewind(at)
            talk = Session(language_model, tokenizer, store=found, name=session, quality=quality, lossless=lossless)
            talk.say(prompt, max_new_tokens=max_new_tokens, on_text=write)
            if not talk.told:
                sys.stderr.write(f"note: {OUTSIDE_THE_TEMPLATE}.\n")
            facts: dict[str, Any] = {"tokens": held.tokens, "entry": len(held) - 1}
        else:
            snapshot, facts = _state(held, language_model, tokenizer, at, tokens, layers, other_weights)
            cache = facts.pop("cache", None)
    if not save:
        from kvcompress.cli.resume import go_on

        facts["new_token_ids"] = go_on(language_model, tokenizer, snapshot, prompt, write, max_new_tokens, cache=cache)
    if as_json:
        show(facts | {"text": "".join(pieces)}, as_json=True)
    else:
        typer.echo()


def _state(
    session: StoredSession,
    model: Any,
    tokenizer: Any,
    at: str | None,
    tokens: str | None,
    layers: str | None,
    other_weights: bool,
) -> tuple[KVSnapshot, dict[str, Any]]:
    """Return a state, whole or restored in part, and what is told of it; with other weights also its `cache`."""
    from kvcompress.hf import recompute_with

    found = session.compatibility(model, tokenizer, other_weights=other_weights)
    if found is not None:
        found.require()  # before anything is decoded
    if other_weights:
        from kvcompress.store.resume import resumed

        snapshot = session.snapshot(at)
        made = resumed(snapshot, model, tokenizer, other_weights=True)
        if made.measured is not None:
            sys.stderr.write(f"{made.measured.words()}\n")
        measured = None if made.measured is None else made.measured.to_json()
        return snapshot, {"tokens": snapshot.tokens, "measured": measured, "cache": made.cache}
    if tokens is None and layers is None:
        recompute = recompute_with(model, tokenizer)
        snapshot = session.snapshot(at, model=model, tokenizer=tokenizer, recompute=recompute)
        return snapshot, {"tokens": snapshot.tokens}
    from kvcompress.store.partial import restore_part

    part = restore_part(session, model, tokenizer, tokens=_span(tokens), layers=_span(layers), at=at)
    facts = part.to_json()
    sys.stderr.write(
        f"{facts['restored_share']:.0%} of the cache was restored, {facts['recomputed_share']:.0%} computed\n"
    )
    return part.snapshot, {"tokens": part.snapshot.tokens, **facts}


def _span(text: str | None) -> tuple[int, int | None] | None:
    """Return the span that an option names: "10:20", ":20", "10:"."""
    if text is None:
        return None
    first, mark, last = text.partition(":")
    if not mark or not all(one.isdecimal() or not one for one in (first, last)):
        raise InputError(f"{text!r} is no span", "Give one such as 10:20, :20 or 10:")
    return int(first or 0), int(last) if last else None
