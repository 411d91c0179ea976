"""`kvcompress inspect`: print what a file holds, from its header alone and without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import (
    DEFAULT_MAX_MEMORY,
    CodecOption,
    JsonOption,
    KvzArgument,
    MaxMemoryOption,
    ModelOption,
    show,
)
from kvcompress.codec.settings import NOTHING_STATED, CommonSettings, TinyVAESettings, settings_of
from kvcompress.errors import FormatError
from kvcompress.hub.bundled import DEFAULT_MODEL


def in_words(settings: CommonSettings) -> dict[str, str]:
    """Return what a file's settings promise, in words."""
    words = {}
    certificate, stored = settings.certificate, settings.stored
    if certificate is not None:
        along, over = "the last {} tokens", certificate.tail_tokens
        if certificate.future_tokens is not None:
            along, over = "{} tokens that the model said itself", certificate.future_tokens
        told = f"mean KL {certificate.kl_nats:.4g} nats, measured over {along.format(over)}"
        words["certificate"] = f"{told}; asked for: at most {certificate.max_kl_nats:g}"
    latents = settings if isinstance(settings, TinyVAESettings) else None
    if latents is not None and latents.recompute_layers:
        words["recomputed"] = f"keys and values of layers 0 to {latents.recompute_layers}: restoring needs the model"
    if stored in ("residual", "lossless") and not settings.unlike:
        words["stored"] = "latents and what they do not reach" if stored == "residual" else "without loss"
    if latents is not None and latents.other_weights is not None:
        words["weights"] = latents.other_weights.words()
    if settings.unlike and stored is not None:
        asked = f"{settings.quality!r} was asked for, {stored!r} is stored"
        words["quality"] = f"{asked}: unlike the sessions that the codec knows"
    return words


def inspect(
    file: KvzArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the plan instead: tier and bits of each token. Decodes the file.")
    ] = False,
    plan_table: Annotated[
        Path | None, typer.Option(help="File that `encode --plan-table` wrote: adds anchors and scores to --plan.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    codec: CodecOption = None,
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    as_json: JsonOption = False,
) -> None:
    """Print what a file holds, from its header: model, codec, tokens, size ratio, bytes by section."""
    if plan or plan_table is not None:
        from kvcompress.cli.plan_view import show_plan
        from kvcompress.format.limits import memory_limit

        with memory_limit(max_memory):
            show_plan(file, plan_table, model, codec, as_json=as_json)
        return
    from kvcompress.codec.at_hand import promise_of_file
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
    try:
        stated = settings_of(header)
    except FormatError:  # decoding refuses the file; what else it holds can be looked at
        stated = NOTHING_STATED
    promise = promise_of_file(codec, header.codec_fingerprint, stated)
    if as_json:
        data |= {"promise": promise.to_json()} if promise else {}
        fingerprint = dict(header.model)
        sections_all = {"header": file_bytes - sum(sections.values()), **sections}
        show(data | {"model": fingerprint, "sections": sections_all}, as_json=True)
        return
    from kvcompress.codec.promise import promise_in_words

    told = {"promise": promise_in_words(promise)} if promise else {}
    show(data | in_words(stated) | told, as_json=False)
    sys.stdout.write("\n")
    from kvcompress.report.terminal import print_table

    listed = {"header": file_bytes - sum(sections.values()), **sections}
    rows = [(name, f"{size:,}", f"{size / file_bytes:.1%}") for name, size in listed.items()]
    print_table(("section", "bytes", "share"), rows, numbers=(1, 2))
