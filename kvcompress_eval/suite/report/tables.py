"""The tables of a report, as plain text cells that the Markdown and the HTML page share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvcompress.report.spelling import NOTHING, spell, with_error
from kvcompress.report.tables import Column, Row, Table
from kvcompress_eval.suite.report.facts import (
    Codec,
    Result,
    failed,
    measured,
    recalled,
    recalled_uncompressed,
    size_ratio,
)

MOST_SECTIONS = 6  # named in a cell
MOST_FAILED = 8  # shown before the page folds them


Cell = Callable[[Codec], str]
WORDS = Column("codec", number=False)


def of_codecs(
    heading: str, note: str, codecs: Sequence[Codec], cells: dict[str, Cell], words: tuple[str, ...] = ()
) -> Table:
    """Return a table with a row for each codec; columns in which every cell is empty are left out."""
    filled = {name: cell for name, cell in cells.items() if any(cell(codec) != NOTHING for codec in codecs)}
    columns = (WORDS, *(Column(name, name not in words) for name in filled))
    rows = [Row((codec["name"], *(cell(codec) for cell in filled.values())), codec["family"]) for codec in codecs]
    return Table(heading, note, columns, tuple(rows))


def _metric(name: str, style: str) -> Cell:
    return lambda codec: with_error(codec["fidelity"].get(name), style)


def _kept(codec: Codec) -> str:
    found = codec["instructions"]
    return f"{found['kept']} of {found['checked']}" if found else NOTHING


def main_table(result: Result) -> Table:
    """Return the table of every measured codec: size, fidelity, tier."""
    unequal = len({codec.get("sessions") for codec in measured(result)}) > 1
    cells: dict[str, Cell] = {
        "family": lambda codec: codec["family"],
        "sessions": lambda codec: spell(codec.get("sessions") if unequal else None, "count"),
        "tier": lambda codec: codec["tier"] or "none",
        "size ratio": lambda codec: with_error(codec["size"]["size_ratio"], "ratio"),
        "KL, nats": _metric("kl_nats", "nats"),
        "context lost": _metric("context_lost", "share"),
        "top-1": _metric("top1_agreement", "share"),
        "sensitive KL": _metric("sensitive_kl_nats", "nats"),
        "facts": recalled,
        "instructions": _kept,
        "score": lambda codec: spell(_harmonic(codec), "score"),
    }
    exact = recalled_uncompressed(result)
    note = (
        "Size ratio: 16-bit bytes over file bytes, headers included. KL is from the exact cache to the decoded one; "
        "context lost is KL over what the context is worth; sensitive KL is over the positions that need the context; "
        "the score is described below. A mean stands with its standard error over sessions."
        + (" Baselines that lose next to nothing are measured on few sessions." if unequal else "")
        + (f" The exact cache recalls {exact} facts." if exact else "")
        + (_WIDE if result["model"]["dtype"] == "float32" else "")
    )
    return of_codecs("All codecs", note, measured(result), cells, ("family", "tier"))


_WIDE = (
    " The model computes in float32, twice what a size ratio counts: what keeps each of its bits is larger than 16 a "
    "value, so its ratio may lie below 1."
)


def failed_table(result: Result) -> Table:
    """Return the codecs that could not be measured, and why."""
    columns = (WORDS, Column("family", number=False), Column("reason", number=False))
    rows = [Row((codec["name"], codec["family"], codec["failed"]), codec["family"]) for codec in failed(result)]
    note = "Codecs that failed, and settings given up after the first session; none of their figures is shown."
    return Table("Not measured", note, columns, tuple(rows), folded=len(rows) > MOST_FAILED)


def _harmonic(codec: Codec) -> float | None:
    found = (codec.get("score") or {}).get("harmonic")
    return None if found is None else float(found["mean"])


def percentile_table(result: Result) -> Table:
    """Return what the mean KL hides: percentiles, and the first five."""
    cells: dict[str, Cell] = {
        "median": _metric("kl_p50_nats", "nats"),
        "90 %": _metric("kl_p90_nats", "nats"),
        "99 %": _metric("kl_p99_nats", "nats"),
        "99.9 %": _metric("kl_p999_nats", "nats"),
        "worst": _metric("kl_max_nats", "nats"),
        "in first five": _metric("top5_agreement", "share"),
        "sensitive top-1": _metric("sensitive_top1_agreement", "share"),
    }
    note = (
        "Percentiles of the KL of single tokens, in nats; the exact cache's first token among the decoded one's first "
        "five; the same first token where the context matters."
    )
    return of_codecs("Percentiles", note, measured(result), cells)


def text_table(result: Result) -> Table:
    """Return what becomes of texts: the token that followed, greedy texts, sampled texts."""
    cells: dict[str, Cell] = {
        "RMS change": _metric("rms_probability_change", "share"),
        "perplexity ratio": _metric("ppl_ratio", "number"),
        "texts part after, tokens": _metric("first_divergence_tokens", "number"),
        "margin there, nats": _metric("divergence_margin_nats", "number"),
        "branch divergence, nats": _metric("branch_divergence_nats", "nats"),
    }
    note = (
        "RMS change of the probability of the token that followed; perplexity from the decoded cache over the exact "
        "one; where greedy texts part, and by how little the exact cache preferred its own token there; Jensen-Shannon "
        "divergence of sampled continuations."
    )
    return of_codecs("Texts", note, measured(result), cells)


def size_table(result: Result) -> Table:
    """Return where the bytes are."""
    cells: dict[str, Cell] = {
        "file": lambda codec: spell(codec["size"]["file_bytes"], "bytes"),
        "bits a value": lambda codec: spell(codec["size"]["bits_per_value"], "number"),
        "smallest ratio": lambda codec: spell(codec["size"]["smallest_size_ratio"], "ratio"),
        "codec itself": lambda codec: spell(codec["codec_bytes"], "bytes") if codec["codec_bytes"] else "nothing",
        "stored as": _stored,
        "sections": _sections,
    }
    note = (
        "Mean file; the smallest ratio is that of the worst session; what must be at hand to decode, once for all; how "
        "sessions are stored, where that is not always in one way."
    )
    return of_codecs("Bytes", note, measured(result), cells, ("stored as", "sections"))


def _stored(codec: Codec) -> str:
    """Return how many sessions are stored in which way; nothing where all are stored alike."""
    ways, unlike = codec.get("stored") or {}, codec.get("unlike") or 0
    if len(ways) < 2 and not unlike:
        return NOTHING
    told = [f"{count} {way}" for way, count in ways.items()]
    return ", ".join([*told, *([f"{unlike} of them finer, as unlike the codec's own"] if unlike else [])])


def _sections(codec: Codec) -> str:
    ordered = sorted(codec["size"]["sections"].items(), key=lambda item: -item[1])
    total = sum(size for _, size in ordered) or 1
    listed = [f"{name} {100 * size / total:.1f} %" for name, size in ordered[:MOST_SECTIONS]]
    more = [f"{len(ordered) - MOST_SECTIONS} more"] if len(ordered) > MOST_SECTIONS else []
    return ", ".join([*listed, *more]) or NOTHING


def cost_table(result: Result) -> Table:
    """Return seconds, speed and memory, and from which length on a file is worth having."""
    even, restore = result["economics"]["break_even_tokens"], result["economics"]["restore_seconds"]
    cells: dict[str, Cell] = {
        "encode": lambda codec: spell(codec["seconds"]["encode"], "seconds"),
        "decode": lambda codec: spell(codec["seconds"]["decode"], "seconds"),
        "restore": lambda codec: spell(restore.get(codec["name"], codec["seconds"]["restore"]), "seconds"),
        "encode, MB/s": lambda codec: spell(codec["megabytes_per_second"]["encode"], "number"),
        "decode, MB/s": lambda codec: spell(codec["megabytes_per_second"]["decode"], "number"),
        "peak memory": lambda codec: spell(codec.get("peak_memory_bytes"), "bytes"),
        "faster than prefill from, tokens": lambda codec: spell(even.get(codec["name"]), "count"),
        "pays back after, sessions": lambda codec: spell(codec["pays_back_after_sessions"], "number"),
    }
    prefill = spell(result["economics"]["prefill_seconds"], "seconds")
    shortest = min((row["tokens"] for row in result["economics"].get("lengths") or []), default=None)
    note = (
        f"Reading the session again takes {prefill}. A codec pays back when the bytes it saved exceed its own; "
        "a dash says never or not measured."
        + (f" The shortest length tried is {shortest:,} tokens." if shortest else "")
        + beside_other_work(result)
    )
    return of_codecs("Cost", note, measured(result), cells)


def beside_other_work(result: Result) -> str:
    """Return a warning where more wanted a processor than this run's threads: seconds are then too long."""
    machine = result["machine"]
    load, threads = machine.get("load"), machine["threads"]
    if not isinstance(load, int | float) or load <= threads + 0.5:
        return ""
    return (
        f" Measured beside other work: {load:g} processes wanted a processor, {threads} of them this run's threads, so "
        "all seconds are too long and say little."
    )


def controls_table(result: Result) -> Table | None:
    """Return what a file without any loss shows: the noise under which no codec can be told from another."""
    floor = result["noise_floor_nats"]
    if not result["controls"] and floor is None:
        return None
    columns = (Column("control", number=False), Column("KL, nats"), Column("worst KL, nats"), Column("top-1"))
    rows = [
        Row((row["name"], spell(row["kl_nats"], "nats"), spell(row["kl_max_nats"], "nats"), _share(row)))
        for row in result["controls"]
    ]
    said = f"Noise floor: {spell(floor, 'nats')} nats. " if floor is not None else ""
    note = f"{said}Differences of KL below it are arithmetic, not codec."
    return Table("Controls", note, columns, tuple(rows))


def _share(row: Codec) -> str:
    return spell(row["top1_agreement"], "share")


def category_tables(result: Result) -> list[Table]:
    """Return KL, context lost and agreement by category of session, each folded."""
    codecs, categories = measured(result), result["sessions"]["categories"]
    measures = (("kl_nats", "KL by category, nats", "nats"), ("context_lost", "Context lost by category", "share"))
    listed = (*measures, ("top1_agreement", "Same next token by category", "share"))
    tables = []
    for name, heading, style in listed:
        cells: dict[str, Cell] = {
            f"{category} ({count:,})": _in_category(category, name, style) for category, count in categories.items()
        }
        table = of_codecs(heading, "In brackets the number of sessions.", codecs, cells)
        if len(table.columns) > 1:
            tables.append(Table(table.heading, table.note, table.columns, table.rows, folded=True))
    return tables


def _in_category(category: str, metric: str, style: str) -> Cell:
    return lambda codec: with_error(codec["by_category"].get(category, {}).get(metric), style)


def formats_table(result: Result) -> Table | None:
    """Return size ratios in the codecs' own formats, which are not files of this package."""
    ratios = result.get("original_formats")
    if not ratios:
        return None
    rows = [Row((name, spell(ratio, "ratio"))) for name, ratio in sorted(ratios.items(), key=lambda item: item[1])]
    note = "The same content packed as its authors pack it, for comparison with the files measured above."
    return Table("Original formats", note, (Column("format", number=False), Column("size ratio")), tuple(rows))


def bound_table(result: Result) -> Table | None:
    """Return how far each codec is from the reverse water-filling bound at its distortion."""
    bound = result.get("bound")
    if not bound:
        return None
    codecs = {codec["name"]: codec for codec in measured(result)}
    columns = (WORDS, Column("KL, nats"), Column("size ratio"), Column("at the bound"), Column("rate over bound"))
    rows = []
    for row in sorted(bound, key=lambda row: row["kl_nats"]):
        codec = codecs.get(row["name"])
        reached = row.get("measured_size_ratio") or (size_ratio(codec) if codec else None)
        cells = (row["name"], spell(row["kl_nats"], "nats"), spell(reached, "ratio"), spell(row["size_ratio"], "ratio"))
        family = codec["family"] if codec else ""
        rows.append(Row((*cells, f"{row['rate_over_bound']:.3g}"), family))
    sessions = max((row.get("sessions") or 0 for row in bound), default=0)
    over = f" Over {sessions} session{'s' if sessions > 1 else ''}." if sessions else ""
    note = (
        f"What a coder at the reverse water-filling bound would reach at the same distortion.{over} The covariance is "
        "that of the same sessions; few tokens make it look narrower than it is, and the bound then promises too much."
    )
    return Table("Distance to the bound", note, columns, tuple(rows))
