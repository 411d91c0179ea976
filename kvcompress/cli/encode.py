"""`kvcompress encode`: a raw snapshot to a `.kvz` file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import CodecOption, ForceOption, JsonOption, progress_bar, show
from kvcompress.cli.inspect import in_words
from kvcompress.cli.wishes import PlanWishes
from kvcompress.errors import InputError, about
from kvcompress.zoo import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.container import Encoded
    from kvcompress.snapshot import KVSnapshot


def encode(
    raw: Annotated[Path, typer.Argument(help="Raw snapshot (.safetensors).", metavar="RAW.safetensors")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write (.kvz).")],
    codec: CodecOption = DEFAULT_CODEC,
    quality: Annotated[
        str | None, typer.Option(help="transparent, high or usable: tiers of measured fidelity. [default: transparent]")
    ] = None,
    size_ratio: Annotated[
        float | None, typer.Option(help="Raw 16-bit size over file size, at least this or within 3 % of it.")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Smallest file whose mean KL (nats), resumed on the session's own end, is at most this."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that --max-kl and plans resume with. [default: the bundled one]")
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Give the identical bits back; needs no codec.")] = False,
    plan: Annotated[
        str | None, typer.Option(help="auto: a tier for each token; none: one for all. [default: none]")
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help="Scorer that plans follow; repeat it to let several race.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Regular expression: what it matches is coded fine, whatever its score.")
    ] = None,
    keep_message: Annotated[
        list[int] | None, typer.Option(help="Index of a message to be coded fine; negative from the end.")
    ] = None,
    keep_fraction: Annotated[
        float | None, typer.Option(help="Share of the tokens that stays in memory; the others leave every layer.")
    ] = None,
    guarantee: Annotated[
        list[str] | None, typer.Option(help="KIND=TIER: tier below which anchors of a kind never fall.")
    ] = None,
    plan_table: Annotated[
        Path | None, typer.Option(help="JSON file to write: token, tier, bits, anchors, score parts, the race.")
    ] = None,
    races: Annotated[Path | None, typer.Option(help="JSON file of earlier races, which steer this one.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress a raw snapshot."""
    if sum((quality is not None, size_ratio is not None, max_kl is not None, lossless)) > 1:
        raise InputError("name only one of --quality, --size-ratio, --max-kl and --lossless")
    wishes = PlanWishes(
        plan, scorer or [], keep or [], keep_message or [], keep_fraction, guarantee or [], plan_table, races
    )
    planned = wishes.wanted()
    if model is not None and max_kl is None and not planned:
        what = "--model needs --max-kl or a plan"
        raise InputError(what, "Only a file with a bound on its KL, or of a plan, is measured with a model")
    if max_kl is not None:
        from kvcompress.closed_loop import require_bound

        require_bound(max_kl)
    from kvcompress.atomic import require_writable
    from kvcompress.container import save
    from kvcompress.raw import load_raw

    require_writable(output, force)
    if plan_table is not None:
        require_writable(plan_table, force)
    snapshot = load_raw(raw)
    start = time.perf_counter()
    notes: tuple[str, ...] = ()
    with about(raw):
        if planned:
            from kvcompress.cli.planning import encode_planned

            target = {"quality": quality, "size_ratio": size_ratio, "max_kl_nats": max_kl}
            encoded, notes = encode_planned(snapshot, codec, model or DEFAULT_MODEL, target, lossless, wishes, force)
        elif max_kl is not None:
            encoded = _encoded_within(snapshot, codec, model or DEFAULT_MODEL, max_kl)
        else:
            encoded = _encoded(snapshot, codec, quality or "transparent", size_ratio, lossless)
    seconds = time.perf_counter() - start
    save(output, encoded, force=force)
    file_bytes = output.stat().st_size
    reached = snapshot.raw_bytes / file_bytes
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes, "file_bytes": file_bytes}
    data |= {"size_ratio": reached, "encode_seconds": seconds, "codec": encoded.codec}
    for note in (*notes, *_notes(encoded, reached)):
        sys.stderr.write(f"note: {note}.\n")
    show(data | ({"settings": dict(encoded.settings)} if as_json else in_words(encoded.settings)), as_json=as_json)


def _encoded(snapshot: KVSnapshot, codec: str, quality: str, size_ratio: float | None, lossless: bool) -> Encoded:
    if lossless:
        from kvcompress.lossless import LosslessCodec

        return LosslessCodec().encode(snapshot)
    from kvcompress.plan import encode_at_quality, encode_at_size_ratio
    from kvcompress.zoo import load_codec

    loaded = load_codec(codec)
    if size_ratio is not None:
        return encode_at_size_ratio(loaded, snapshot, size_ratio)
    return encode_at_quality(loaded, snapshot, quality)


def _encoded_within(snapshot: KVSnapshot, codec: str, model: str, max_kl_nats: float) -> Encoded:
    from kvcompress.closed_loop import Race, hold_back
    from kvcompress.hf import load_model
    from kvcompress.zoo import find_checkpoint, load_codec

    loaded = load_codec(codec)
    language_model, tokenizer = load_model(find_checkpoint(model), snapshot.origin.dtype)
    tail = hold_back(language_model, snapshot, tokenizer)  # every refusal comes before the bar
    with progress_bar("encode") as progress:
        return Race(loaded, language_model, snapshot, tail, max_kl_nats, progress).winner()


def _notes(encoded: Encoded, reached: float) -> Iterator[str]:
    """Yield what a user who looks at the size alone would miss, a line each."""
    settings = encoded.settings
    if "size_ratio" in settings:
        from kvcompress.plan import size_ratio_note

        note = size_ratio_note(encoded, reached)
        if note is not None:
            yield note
    if settings.get("unlike"):
        told = f"this session is unlike those that the codec knows: stored at {settings['stored']!r}"
        yield f"{told} instead of {settings['quality']!r}"
    if "certificate" in settings and "rate" not in settings:
        certificate = settings["certificate"]
        told = f"no rate of the codec keeps a mean KL of {certificate['max_kl_nats']:g} nats"
        yield f"{told}: stored by the codec {encoded.codec!r}, which loses {certificate['kl_nats']:.2g}"
