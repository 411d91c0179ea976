"""`kvcompress inspect`: what a file holds, read from its header alone and without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import CodecOption, JsonOption, KvzArgument, ModelOption, show, write_line
from kvcompress.codec.promise import OTHER_WEIGHTS
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.codec.promise import Promise


def in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what a file's settings promise, in words; a part that is not as this package writes it is left out."""
    words = {}
    certificate, stored = settings.get("certificate"), settings.get("stored")
    if isinstance(certificate, dict):
        over = "future_tokens" if "future_tokens" in certificate else "tail_tokens"
        numbers = [certificate.get(name) for name in ("kl_nats", over, "max_kl_nats")]
        if all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            along = "{} tokens that the model said itself" if over == "future_tokens" else "the last {} tokens"
            told = f"mean KL {{:.4g}} nats, measured over {along}; asked for: at most {{:g}}"
            words["certificate"] = told.format(*numbers)
    layers = settings.get("recompute_layers")
    if isinstance(layers, int) and layers > 0:
        words["recomputed"] = f"keys and values of layers 0 to {layers}: restoring needs the model"
    if stored in ("residual", "lossless") and not settings.get("unlike"):
        words["stored"] = "latents and what they do not reach" if stored == "residual" else "without loss"
    if OTHER_WEIGHTS in settings:
        words["weights"] = other_weights_in_words(settings)
    if settings.get("unlike") is True and isinstance(stored, str):
        quality = settings.get("quality")
        words["quality"] = f"{quality!r} was asked for, {stored!r} is stored: unlike the sessions that the codec knows"
    return words


def other_weights_in_words(settings: Mapping[str, Any]) -> str:
    """Return which weights recorded a session that are not its codec's own, and what was measured with them."""
    stated = settings.get(OTHER_WEIGHTS)
    if not isinstance(stated, Mapping):
        return "not said as this package says it"
    own, session = (str(stated.get(name))[:12] for name in ("codec", "session"))
    told = f"recorded with weights {session}, its codec was fitted to {own}"
    sessions, kl = stated.get("sessions"), stated.get("kl_nats")
    if isinstance(sessions, int) and isinstance(kl, int | float):
        told += f"; measured on {sessions} sessions of these: mean KL {kl:.3g} nats"
    return told


def inspect(
    file: KvzArgument,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan: token, tier, score parts, bits.")] = False,
    plan_table: Annotated[
        Path | None, typer.Option(help="What encode --plan-table wrote: adds anchors and score parts.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    codec: CodecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print model, tokens, bytes by section and size ratio; with --plan what is kept of each token."""
    if plan or plan_table is not None:
        from kvcompress.cli.plan_view import show_plan

        show_plan(file, plan_table, model, codec, as_json=as_json)
        return
    from kvcompress.format.container import read_header

    header = read_header(file)
    file_bytes = file.stat().st_size
    sections = {name: size for name, size, _ in header.sections}
    data = {
        "codec": header.codec,
        "codec_fingerprint": header.codec_fingerprint,
        "model_name": header.model_name,
        "tokens": header.tokens,
        "raw_bytes": header.raw_bytes,
        "file_bytes": file_bytes,
        "size_ratio": header.raw_bytes / file_bytes,
        "bits_per_value": 16 * file_bytes / header.raw_bytes if header.raw_bytes else 0.0,
        "settings": dict(header.settings),
    }
    promise = promise_of_file(codec, header.codec_fingerprint, header.settings)
    if as_json:
        data |= {"promise": promise.to_json()} if promise else {}
        fingerprint = dict(header.model)
        sections_all = {"header": file_bytes - sum(sections.values()), **sections}
        show(data | {"model": fingerprint, "sections": sections_all}, as_json=True)
        return
    from kvcompress.codec.promise import promise_in_words

    told = {"promise": promise_in_words(promise)} if promise else {}
    show(data | in_words(header.settings) | told, as_json=False)
    sys.stdout.write("\n")
    for name, size in {"header": file_bytes - sum(sections.values()), **sections}.items():
        write_line(f"  {name:<14} {size:>12,} bytes  {size / file_bytes:6.1%}")


def promise_of_file(codec: str | None, codec_fingerprint: str, settings: Mapping[str, Any]) -> Promise | None:
    """Return what is promised of a file, where the codec that made it is at hand."""
    from kvcompress.codec.at_hand import directory_that_made
    from kvcompress.codec.promise import stated_promise
    from kvcompress.errors import CheckpointError, FormatError
    from kvcompress.hub.places import find_codec

    try:
        place = directory_that_made(codec_fingerprint) if codec is None else find_codec(codec)
        return None if place is None else stated_promise(place, codec_fingerprint, settings)
    except (CheckpointError, FormatError):  # the file can be looked at without its codec
        return None
