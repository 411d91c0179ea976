"""`kvcompress encode`: a raw snapshot to a `.kvz` file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import CodecOption, ForceOption, JsonOption, RecomputeLayersOption, show
from kvcompress.cli.inspect import in_words, other_weights_in_words
from kvcompress.cli.wish import Wish, fulfil
from kvcompress.cli.wishes import PlanWishes
from kvcompress.codec.promise import OTHER_WEIGHTS
from kvcompress.errors import about
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.format.container import Encoded
    from kvcompress.rate.link import Choice
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
    recompute_layers: RecomputeLayersOption = None,
    link: Annotated[
        float | None,
        typer.Option(metavar="MBIT/S", help="Choose --recompute-layers for the shortest way back over such a link."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model that --max-kl, --recompute-layers, --link and plans run. [default: the bundled one]"),
    ] = None,
    allow_other_weights: Annotated[
        bool,
        typer.Option(
            "--allow-other-weights",
            help="Take a session of other weights of the codec's model, measured: with --max-kl, or --quality.",
        ),
    ] = False,
    sessions: Annotated[
        Path | None,
        typer.Option(help="Sessions that --quality is measured on with other weights; not needed again later."),
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Give the identical bits back; needs no codec.")] = False,
    plan: Annotated[
        str | None,
        typer.Option(help="auto: tiers by token, by a race; quick: without one; none: one tier. [default: none]"),
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
    evidence: Annotated[
        Path | None, typer.Option(help="What scorers look at, as `kvcompress record --evidence` stored it.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress a raw snapshot."""
    plans = PlanWishes(
        plan, scorer or [], keep or [], keep_message or [], keep_fraction, guarantee or [], plan_table, races, evidence
    )
    planned = plans.wanted()
    layers = None if recompute_layers is None else _layers(recompute_layers, codec)
    wish = Wish(
        codec, quality, size_ratio, max_kl, lossless, layers, link, model, planned, allow_other_weights, sessions
    )
    wish.check()
    from kvcompress.format.atomic import require_writable
    from kvcompress.format.container import save
    from kvcompress.format.raw_snapshot import load_raw

    require_writable(output, force)
    if plan_table is not None:
        require_writable(plan_table, force)
    snapshot = load_raw(raw)
    start = time.perf_counter()
    with about(raw):
        encoded, choice, notes = _coded(wish, plans, snapshot, force)
    seconds = time.perf_counter() - start
    save(output, encoded, force=force)
    file_bytes = output.stat().st_size
    reached = snapshot.raw_bytes / file_bytes
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes, "file_bytes": file_bytes}
    data |= {"size_ratio": reached, "encode_seconds": seconds, "codec": encoded.codec}
    for note in (*notes, *_notes(encoded, reached, choice, codec)):
        sys.stderr.write(f"note: {note}.\n")
    if as_json:
        show(data | {"settings": dict(encoded.settings)} | (_dial_json(choice) if choice else {}), as_json=True)
        return
    show(data | in_words(encoded.settings), as_json=False)
    if choice:
        sys.stdout.write("\n" + "".join(f"{line}\n" for line in _dial_lines(choice)))


def _coded(
    wish: Wish, plans: PlanWishes, snapshot: KVSnapshot, force: bool
) -> tuple[Encoded, Choice | None, tuple[str, ...]]:
    """Return the file, how all points of the dial did where a link chose, and what is to be told."""
    if not wish.planned:
        return *fulfil(wish, snapshot), ()
    from kvcompress.cli.planning import encode_planned

    target = {"quality": wish.quality, "size_ratio": wish.size_ratio, "max_kl_nats": wish.max_kl_nats}
    model = wish.model or DEFAULT_MODEL
    encoded, notes = encode_planned(snapshot, wish.codec, model, target, wish.lossless, plans, force)
    return encoded, None, notes


def _layers(asked: str, codec: str) -> int:
    """Return a number of layers given as such or as a share of those of the codec's model."""
    import json

    from kvcompress.codec.recompute import parse_layers
    from kvcompress.hub.places import find_codec

    def count() -> int:
        return len(json.loads((find_codec(codec) / "config.json").read_text(encoding="utf-8"))["shapes"])

    return parse_layers(asked, count)


def _dial_json(choice: Choice) -> dict[str, Any]:
    return {"dial": [way.to_json() for way in choice.ways], "prefill": choice.prefill.to_json()}


def _dial_lines(choice: Choice) -> Iterator[str]:
    """Yield the table of all ways back, the chosen one marked."""
    yield f"  {'m':<8}{'bytes':>12}{'transfer':>12}{'restore':>12}{'total':>12}"
    for way in (*choice.ways, choice.prefill):
        name = "prefill" if way.recompute_layers is None else str(way.recompute_layers)
        seconds = (way.transfer_seconds, way.restore_seconds, way.total_seconds)
        mark = "  chosen" if way is choice.chosen else ""
        yield f"  {name:<8}{way.file_bytes:>12,}" + "".join(f"{value:>10.3f} s" for value in seconds) + mark


def _notes(encoded: Encoded, reached: float, choice: Choice | None, codec: str) -> Iterator[str]:
    """Yield what a user who looks at the size alone would miss, a line each."""
    settings = encoded.settings
    if choice:
        from kvcompress.rate.link import prefill_note

        told = prefill_note(choice)
        if told is not None:
            yield told
    if "size_ratio" in settings:
        from kvcompress.rate.targets import size_ratio_note

        note = size_ratio_note(encoded, reached)
        if note is not None:
            yield note
    if OTHER_WEIGHTS in settings:
        yield f"{other_weights_in_words(settings)}: only these can go on from it"
    if settings.get("stored") in ("residual", "lossless") and not settings.get("unlike"):
        from kvcompress.codec.promise import promise_in_words, stated_promise
        from kvcompress.hub.places import find_codec

        promise = stated_promise(find_codec(codec), encoded.codec_fingerprint, settings)
        told = promise_in_words(promise) if promise else f"stored as {settings['stored']}"
        yield f"latents alone do not keep {settings['quality']!r} on this model: {told}"
    if settings.get("unlike"):
        told = f"this session is unlike those that the codec knows: stored at {settings['stored']!r}"
        yield f"{told} instead of {settings['quality']!r}"
    if "certificate" in settings and "rate" not in settings:
        certificate = settings["certificate"]
        told = f"no rate of the codec keeps a mean KL of {certificate['max_kl_nats']:g} nats"
        yield f"{told}: stored by the codec {encoded.codec!r}, which loses {certificate['kl_nats']:.2g}"
