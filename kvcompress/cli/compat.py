"""`kvcompress compat`: whether a model goes on from what another one recorded, field by field. Exit status 1 if not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import JsonOption, show

if TYPE_CHECKING:
    from kvcompress.store.identity import Identity

WHAT = "A .kvz file, a raw snapshot, or a model: bundled name, directory, GGUF file or Hub id."


def compat(
    recorded: Annotated[
        str, typer.Argument(help=f"What recorded the session. {WHAT}", metavar="A", show_default=False)
    ],
    model: Annotated[str, typer.Argument(help="What is to go on from it; likewise.", metavar="B", show_default=False)],
    store: Annotated[
        Path | None, typer.Option(help="A is the name of a session in this store.", show_default="none")
    ] = None,
    other_weights: Annotated[
        bool, typer.Option("--other-weights", help="Other weights, adapters and tokenizers are meant to be tried.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models by weights, tokenizer, rope, layer kinds, geometry, data type and adapter."""
    from kvcompress.store.identity import compare

    found = compare(_of_session(store, recorded) if store else _of(recorded), _of(model), other_weights=other_weights)
    if as_json:
        show(found.to_json(), as_json=True)
    else:
        from kvcompress.report.terminal import print_table

        rows = [(one.name, one.verdict, one.recorded, one.at_hand, one.what) for one in found.fields]
        print_table(("field", "verdict", "recorded", "at hand", "what"), rows)
        show({"verdict": found.verdict}, as_json=False)
    if found.verdict == "refused":
        raise typer.Exit(1)


def _of(name: str) -> Identity:
    from kvcompress.store.identity import Identity

    path = Path(name)
    if path.is_file() and path.suffix == ".kvz":
        return Identity.of_file(path)
    if path.is_file() and path.suffix == ".safetensors":
        from kvcompress.format.raw_snapshot import load_raw

        return Identity.of_origin(load_raw(path).origin)
    from kvcompress.hf import load_model

    return Identity.of_model(*load_model(name))


def _of_session(store: Path, name: str) -> Identity:
    from kvcompress.cli.store_common import opened
    from kvcompress.errors import InputError
    from kvcompress.store.identity import Identity
    from kvcompress.store.rows import state_of_session

    with opened(store) as found:
        origin = state_of_session(found.session(name)).origin
        if not origin:
            raise InputError(f"session {name!r} is empty", "Append to it first")
        return Identity.of_origin(found.origin(origin))
