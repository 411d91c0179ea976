"""`kvcompress verify`: checksums, and whether codec and model are the right partners. Exit status 1 if not."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption, KvzArgument, show
from kvcompress.cli.models import recompute_by
from kvcompress.hub.bundled import DEFAULT_CODEC


def verify(
    file: KvzArgument,
    codec: Annotated[
        str | None,
        typer.Option(help="Also check this codec's fingerprint. [default: the bundled one, if it made the file]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Also check this model's fingerprint; it recomputes layers where a file asks.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a file from end to end."""
    from kvcompress.format.container import load

    encoded = load(file)
    found = {"checksums": "ok", "codec": "not needed", "decodes": "not tried", "model": "not asked"}
    if encoded.codec_fingerprint:
        found |= _check_codec(file, codec, model)
    else:
        found |= _decodes(file, DEFAULT_CODEC, model)
    if model is not None:
        found["model"] = _check_model(file, model)
    show({"file": str(file), **found}, as_json=as_json)


def _check_codec(file: KvzArgument, codec: str | None, model: str | None) -> dict[str, str]:
    if codec is None and not _is_bundled(file):
        return {"codec": "not the bundled one; name it with --codec"}
    return {"codec": "ok"} | _decodes(file, codec or DEFAULT_CODEC, model)


def _is_bundled(file: KvzArgument) -> bool:
    from kvcompress.codec.directory import load_codec
    from kvcompress.codec.registry import recompute_layers_of
    from kvcompress.format.container import load
    from kvcompress.hub.bundled import find_checkpoint, recompute_choices

    encoded = load(file)
    layers = recompute_layers_of(encoded)
    if layers not in recompute_choices(find_checkpoint(DEFAULT_CODEC)):
        return False
    return load_codec(DEFAULT_CODEC, layers).fingerprint == encoded.codec_fingerprint


def _decodes(file: KvzArgument, codec: str, model: str | None) -> dict[str, str]:
    from kvcompress.codec.registry import load_snapshot

    load_snapshot(file, codec, recompute_by(model))
    return {"decodes": "ok"}


def _check_model(file: KvzArgument, model: str) -> str:
    from kvcompress.errors import FormatError, about
    from kvcompress.format.container import HASH_CHARACTERS, read_header
    from kvcompress.hf import fingerprint, load_model
    from kvcompress.snapshot import ModelFingerprint

    with about(file):
        try:
            # The header's halves tell without the file's codec, which the section "origin" may need.
            named = ModelFingerprint.from_json(read_header(file).model)
        except (KeyError, ValueError) as error:
            raise FormatError(f"the header does not name the model ({error})") from error
    language_model, tokenizer = load_model(model)
    named.require_match(fingerprint(language_model, tokenizer).shortened(HASH_CHARACTERS), path=file)
    return "ok"
