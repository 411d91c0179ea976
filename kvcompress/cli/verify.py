"""`kvcompress verify`: check checksums, codec and model. Exit status 1 if a check fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import DEFAULT_MAX_MEMORY, JsonOption, KvzArgument, MaxMemoryOption, show
from kvcompress.cli.models import recompute_by
from kvcompress.cli.waiting import waiting

if TYPE_CHECKING:
    from kvcompress.format.container import Encoded


def verify(
    file: KvzArgument,
    codec: Annotated[
        str | None,
        typer.Option(help="Codec that the file must belong to.", show_default="the installed one that made the file"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Also check that the file belongs to this model. Needed to decode a file whose first layers the model "
            "recomputes."
        ),
    ] = None,
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    as_json: JsonOption = False,
) -> None:
    """Check a file: checksums, codec, decoding and, with --model, the model. Exit status 1 if a check fails."""
    from kvcompress.errors import about
    from kvcompress.format.container import load
    from kvcompress.format.limits import memory_limit

    found = {"checksums": "ok", "codec": "not needed", "decodes": "not tried", "model": "not asked"}
    with memory_limit(max_memory), about(file), waiting("verify", "decoding") as stage:
        encoded = load(file)
        found |= _check_codec(encoded, codec, model)
        if model is not None:
            stage("reading the model")
            found["model"] = _check_model(encoded, model)
    show({"file": str(file), **found}, as_json=as_json)


def _check_codec(encoded: Encoded, codec: str | None, model: str | None) -> dict[str, str]:
    """Decode with the codec that is named, or with the one at hand that made the file."""
    from kvcompress.codec.at_hand import directory_that_made
    from kvcompress.codec.registry import codec_of

    if encoded.codec_fingerprint and codec is None and directory_that_made(encoded.codec_fingerprint) is None:
        return {"codec": "not at hand; name it with --codec"}
    codec_of(encoded, codec, recompute_by(model)).decode(encoded)
    return {"decodes": "ok"} | ({"codec": "ok"} if encoded.codec_fingerprint else {})


def _check_model(encoded: Encoded, model: str) -> str:
    from kvcompress.errors import FormatError
    from kvcompress.format.container import HASH_CHARACTERS
    from kvcompress.hf import fingerprint, load_model
    from kvcompress.snapshot import ModelFingerprint

    try:
        # The header's halves tell without the file's codec, which the section "origin" may need.
        named = ModelFingerprint.from_json(encoded.model)
    except (KeyError, ValueError) as error:
        raise FormatError(f"the header does not name the model ({error})") from error
    language_model, tokenizer = load_model(model)
    named.require_match(fingerprint(language_model, tokenizer).shortened(HASH_CHARACTERS))
    return "ok"
