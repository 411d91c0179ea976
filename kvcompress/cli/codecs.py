"""`kvcompress codecs`: list the installed codecs, show what one guarantees, download one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import LINES, ForceOption, JsonOption, loads_models, show
from kvcompress.cli.waiting import waiting
from kvcompress.errors import CheckpointError, shown

if TYPE_CHECKING:
    from kvcompress.codec.facts import CodecFacts, Part
    from kvcompress.hub.places import Found

QUALITIES = ("transparent", "high", "usable")
NameArgument = Annotated[
    str, typer.Argument(help="Name of a codec, its directory, or its id on the Hub.", metavar="NAME|DIR|USER/REPO")
]

codecs = typer.Typer(no_args_is_help=True, help="List the installed codecs, show what one guarantees, download one.")


@codecs.command("list")
@loads_models
def list_codecs(
    directory: Annotated[
        Path | None, typer.Option(help="Also list this codec, or the codecs in this directory.")
    ] = None,
    hub: Annotated[
        list[str] | None,
        typer.Option(metavar="USER/REPO", help="Also download this codec from the Hub; give several for more."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Also print which codecs fit this model: a bundled name, a directory, a GGUF file or a Hub id."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the installed codecs; --codec takes the names in the first column.

    Codecs are found among the bundled checkpoints, in $KVCOMPRESS_HOME/codecs (by default in the platform's cache
    directory), and in the local cache of the Hugging Face Hub.
    """
    from kvcompress.hub.hub_id import codec_from_hub
    from kvcompress.hub.places import all_codecs

    for name in hub or []:
        with waiting("codecs list", f"downloading {name}"):
            codec_from_hub(name)
    found = list(_readable(all_codecs(directory)))
    fits = {} if model is None else _fits(model, [facts for _, facts in found])
    if as_json:
        rows = [
            {"name": one.name, "place": one.place, **facts.to_json()}
            | ({"fits": fits[facts.directory]} if model is not None else {})
            for one, facts in found
        ]
        show({"codecs": rows}, as_json=True)
        return
    _print_table([_lines(one, facts, fits.get(facts.directory)) for one, facts in found])


@codecs.command("show")
def show_codec(name: NameArgument, as_json: JsonOption = False) -> None:
    """Print a codec's card and its guarantees: verified sessions, bounds, measured means."""
    from kvcompress.codec.directory import codec_place
    from kvcompress.codec.facts import read_facts

    facts = read_facts(codec_place(name))
    if as_json:
        cards = {str(part.recompute_layers): _card(part) for part in facts.parts}
        show({"name": name, **facts.to_json(), "cards": cards}, as_json=True)
        return
    show({"directory": str(facts.directory), **_belongs_to(facts)}, as_json=False)
    for part in facts.parts:
        sys.stdout.write(f"\nlayers recomputed: {part.recompute_layers}\n")
        for line in _guarantee(part):
            sys.stdout.write(f"  {shown(line)}\n")
    for part in facts.parts:
        sys.stdout.write(f"\n{shown(_card(part).strip(), keep=LINES)}\n")


@codecs.command("pull")
def pull_codec(
    name: NameArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Directory to write the codec to.",
            show_default="its name in $KVCOMPRESS_HOME/codecs",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Download or copy a codec, check its digests, and print which model it belongs to."""
    from kvcompress.codec.pull import pull

    with waiting("codecs pull", f"fetching and checking {name}"):
        facts = pull(name, output, force=force)
    if as_json:
        show({"output": str(facts.directory), **facts.to_json()}, as_json=True)
        return
    show({"output": str(facts.directory), **_belongs_to(facts), "digests": "checked"}, as_json=False)


def _readable(found: Iterator[Found]) -> Iterator[tuple[Found, CodecFacts]]:
    """Yield each codec with what it says of itself; one that is damaged hides no other."""
    from kvcompress.codec.facts import read_facts

    for one in found:
        try:
            yield one, read_facts(one.directory)
        except CheckpointError as error:
            sys.stderr.write(f"note: {shown(error)}\n")


def _fits(model: str, facts: Sequence[CodecFacts]) -> dict[Path, str]:
    """Return for each codec "yes", "other weights" or "no"."""
    from kvcompress.fit.adopt import fit_of
    from kvcompress.hf import load_model

    with waiting("codecs list", "loading the model"):
        loaded = load_model(model)
    return {one.directory: fit_of(one, *loaded) for one in facts}


def _card(part: Part) -> str:
    place = part.directory / "README.md"
    return place.read_text(encoding="utf-8", errors="replace") if place.is_file() else "(it has no card)"


def _belongs_to(facts: CodecFacts) -> dict[str, Any]:
    return {
        "model": facts.model_name or "not named",
        "weights": facts.model.get("weights"),
        "recompute_layers": ", ".join(str(part.recompute_layers) for part in facts.parts),
        "codec_bytes": facts.codec_bytes,
    }


def _guarantee(part: Part) -> Iterator[str]:
    """Yield what is promised of each quality word: how it is stored, n, bounds and measured means."""
    from kvcompress.codec.promise import promise_in_words

    if not part.promises:
        yield "no quality was verified, so none is promised"
    for name, promise in part.promises.items():
        yield f"{name}: {_size(part, name)}, {promise_in_words(promise)}"


def _lines(found: Found, facts: CodecFacts, fits: str | None) -> list[list[str]]:
    """Return the rows of one codec: a row for each number of recomputed layers, names in the first only."""
    from kvcompress.codec.facts import SHORT

    rows = []
    for number, part in enumerate(facts.parts):
        weights = str(facts.model.get("weights"))[:SHORT]
        head = [found.name, found.place, facts.model_name or "?", weights, *([] if fits is None else [fits])]
        tiers = [_tier(part, name) for name in QUALITIES]
        size = [str(part.recompute_layers), f"{part.codec_bytes:,}"]
        rows.append([*(head if number == 0 else [""] * len(head)), *size, *tiers])
    return rows


def _tier(part: Part, quality: str) -> str:
    """Return size ratio and measured KL of a quality; a ratio after "<" leaves token ids and header out."""
    if quality not in part.promises:
        return "-"
    return f"{_size(part, quality)} {part.promises[quality].kl_nats.measured:.4f}"


def _size(part: Part, quality: str) -> str:
    ratio = part.promises[quality].size_ratio
    if ratio is not None:
        return f"{ratio:.4g}x"
    coded = part.coded_ratios.get(quality)
    return "?" if coded is None else f"<{coded:.3g}x" if coded < 1000 else f"<{coded:,.0f}x"


def _print_table(groups: Sequence[Sequence[Sequence[str]]]) -> None:
    """Print a row for each codec and number of recomputed layers."""
    from kvcompress.report.terminal import print_table

    rows = [row for group in groups for row in group]
    if not rows:
        sys.stdout.write("no codec is installed\n")
        return
    fits = ["fits"] if len(rows[0]) > 6 + len(QUALITIES) else []
    head = ["name", "place", "model", "weights", *fits, "m", "bytes", *(f"{name}: size, KL" for name in QUALITIES)]
    print_table(head, rows, numbers=(4 + len(fits), 5 + len(fits)))
    sys.stdout.write(
        "\nm: layers that the model recomputes. KL in nats. A size after < leaves token ids and header out.\n"
    )
