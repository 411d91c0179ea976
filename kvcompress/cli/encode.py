"""`kvcompress encode`: compress a raw snapshot into a `.kvz` file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvcompress.api.options import NONE, PLANS, SEARCH, EncodeOptions, PlanOptions
from kvcompress.cli.console import (
    CodecOption,
    ForceOption,
    JsonOption,
    RecomputeLayersOption,
    beside,
    progress_bar,
    require_other,
    require_output,
    show,
    written,
)
from kvcompress.cli.encode_options import (
    EncodeModelOption,
    EvidenceOption,
    GuaranteeOption,
    HistoryOption,
    KeepFractionOption,
    KeepMessageOption,
    KeepOption,
    LinkOption,
    LosslessOption,
    MaxKlOption,
    OtherWeightsOption,
    OutputOption,
    PlanOption,
    PlanTableOption,
    QualityOption,
    RawArgument,
    ScorerOption,
    SessionsOption,
    SizeRatioOption,
)
from kvcompress.cli.inspect import in_words
from kvcompress.codec.settings import settings_of
from kvcompress.errors import InputError, about, shown
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.api.encoding import Choice, Encoding


def encode(
    raw: RawArgument,
    output: OutputOption,
    quality: QualityOption = None,
    size_ratio: SizeRatioOption = None,
    max_kl: MaxKlOption = None,
    lossless: LosslessOption = False,
    codec: CodecOption = None,
    model: EncodeModelOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    recompute_layers: RecomputeLayersOption = None,
    link: LinkOption = None,
    plan: PlanOption = None,
    scorer: ScorerOption = None,
    keep: KeepOption = None,
    keep_message: KeepMessageOption = None,
    keep_fraction: KeepFractionOption = None,
    guarantee: GuaranteeOption = None,
    plan_table: PlanTableOption = None,
    history: HistoryOption = None,
    evidence: EvidenceOption = None,
    allow_other_weights: OtherWeightsOption = False,
    sessions: SessionsOption = None,
) -> None:
    """Compress a raw snapshot into a .kvz file.

    Choose one of --quality, --max-kl, --size-ratio and --lossless.
    """
    require_output(output, force, as_json, raw, plan_table, history, evidence, sessions)
    planned = _plan(plan, scorer, keep, keep_message, keep_fraction, guarantee, plan_table, history, evidence)
    options = EncodeOptions(
        quality=quality,
        max_kl=max_kl,
        size_ratio=size_ratio,
        lossless=lossless,
        recompute_layers=None if recompute_layers is None else _layers(recompute_layers, raw),
        link_mbits=link,
        plan=planned,
        other_weights=allow_other_weights,
        sessions=sessions,
    )
    if model is not None and not options.runs_model:
        what = "--model needs --max-kl, --recompute-layers, --link, --allow-other-weights or a plan"
        raise InputError(what, "Without them no model is run")
    found, data = _encoded(raw, output, options, codec, model or DEFAULT_MODEL, plan_table, force)
    encoded, choice = found.encoded, found.link
    for note in found.notes:
        sys.stderr.write(f"note: {shown(note)}.\n")
    if as_json:
        show(data | {"settings": dict(encoded.settings)} | (_link_json(choice) if choice else {}), as_json=True)
        return
    show(data | in_words(settings_of(encoded)), as_json=False, file=beside(output))
    if choice:
        _show_link(choice, beside(output))


def _encoded(
    raw: Path,
    output: Path,
    options: EncodeOptions,
    codec: str | None,
    model: str,
    plan_table: Path | None,
    force: bool,
) -> tuple[Encoding, dict[str, Any]]:
    """Encode, write the file and the table of its plan, and return what there is to show."""
    from kvcompress.api.encoding import encode as encode_snapshot
    from kvcompress.api.encoding import model_source
    from kvcompress.format.atomic import require_writable
    from kvcompress.format.container import save
    from kvcompress.format.raw_snapshot import load_raw, session_of_raw
    from kvcompress.prune.table import save_table

    if plan_table is not None:
        require_writable(plan_table, force)
        require_other(plan_table, raw)
    snapshot = load_raw(raw)
    start = time.perf_counter()
    name = session_of_raw(raw)
    with about(f"{raw} ({name})" if name else raw), progress_bar("encode") as progress:
        found = encode_snapshot(snapshot, options, codec=codec, model=model_source(model), progress=progress)
    seconds = time.perf_counter() - start
    if plan_table is not None and found.plan is not None:
        save_table(plan_table, found.plan.table, found.plan.search(), force=force)
    with written(output) as place:
        save(place, found.encoded, force=force)
        file_bytes = place.stat().st_size
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes, "file_bytes": file_bytes}
    data |= {"size_ratio": snapshot.raw_bytes / file_bytes, "encode_seconds": seconds, "codec": found.encoded.codec}
    return found, data


def _plan(
    plan: str | None,
    scorers: list[str] | None,
    keep: list[str] | None,
    messages: list[int] | None,
    keep_fraction: float | None,
    guarantees: list[str] | None,
    table: Path | None,
    history: Path | None,
    evidence: Path | None,
) -> PlanOptions | None:
    """Return the plan that options ask for, None where they ask for none."""
    if plan is not None and plan not in PLANS:
        raise InputError(f"--plan {plan!r} is unknown", f"Use one of {', '.join(PLANS)}")
    given: Mapping[str, object] = {
        "--scorer": scorers,
        "--keep": keep,
        "--keep-message": messages,
        "--keep-fraction": keep_fraction is not None,
        "--guarantee": guarantees,
        "--plan-table": table,
        "--history": history,
        "--evidence": evidence,
    }
    named = [name for name, value in given.items() if value]
    if plan == NONE and named:
        raise InputError(f"{named[0]} needs a plan", "Leave --plan none out")
    if plan in (None, NONE) and not named:
        return None
    return PlanOptions(
        search=plan in (None, SEARCH),
        scorers=tuple(scorers or ()),
        keep=tuple(keep or ()),
        keep_messages=tuple(messages or ()),
        keep_fraction=keep_fraction,
        guarantees=tuple(guarantees or ()),
        history=history,
        evidence=evidence,
    )


def _layers(asked: str, raw: Path) -> int:
    """Return a number of layers given as such or as a share of the session's."""
    from kvcompress.codec.recompute import parse_layers
    from kvcompress.format.raw_snapshot import origin_of_raw

    return parse_layers(asked, lambda: len(origin_of_raw(raw).layer_kinds))


def _link_json(choice: Choice) -> dict[str, Any]:
    return {"trade_off": [option.to_json() for option in choice.options], "prefill": choice.prefill.to_json()}


def _show_link(choice: Choice, file: TextIO) -> None:
    """Print the table of all ways to restore, the chosen one marked."""
    from kvcompress.report.spelling import spell
    from kvcompress.report.terminal import print_table

    rows = []
    for option in (*choice.options, choice.prefill):
        name = "prefill" if option.recompute_layers is None else str(option.recompute_layers)
        seconds = (option.transfer_seconds, option.restore_seconds, option.total_seconds)
        chosen = "chosen" if option is choice.chosen else ""
        rows.append([name, spell(option.file_bytes, "count"), *(f"{value:.3f} s" for value in seconds), chosen])
    file.write("\n")
    names = ("layers recomputed", "bytes", "transfer", "restore", "to the first token", "")
    print_table(names, rows, numbers=range(5), file=file)
