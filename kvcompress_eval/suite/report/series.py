"""Tables of what the figures draw, most of which the page folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvcompress.metrics.fidelity import tier_of
from kvcompress.report.spelling import NOTHING, spell
from kvcompress.report.tables import Column, Row, Table
from kvcompress_eval.suite.report.facts import TIER_NAMES, Codec, Result, measured, promised_word
from kvcompress_eval.suite.report.tables import WORDS, beside_other_work

MOST_STRIP_ROWS = 20


def _grid(
    heading: str, note: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]], result: Result
) -> Table | None:
    """Return a folded table with a row for each codec."""
    if not rows:
        return None
    family = {codec["name"]: codec["family"] for codec in result["codecs"]}
    listed = tuple(Row((name, *cells), family.get(name, "")) for name, cells in rows.items())
    return Table(heading, note, (WORDS, *map(Column, columns)), listed, folded=True)


def _in_order(result: Result, by_codec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given by codec in the order of the main table."""
    return {codec["name"]: by_codec[codec["name"]] for codec in measured(result) if codec["name"] in by_codec}


def layers_table(result: Result) -> Table | None:
    """Return bits per value of each layer."""
    bits = _in_order(result, result.get("bits_by_layer") or {})
    rows = {name: [spell(value, "number") for value in values] for name, values in bits.items()}
    return _padded("Bits a value by layer", "", rows, result)


def attention_table(result: Result) -> Table | None:
    """Return the error of the attention output in each layer."""
    errors = {codec["name"]: codec.get("attention_error_by_layer") for codec in measured(result)}
    rows = {name: [spell(value, "number") for value in found] for name, found in errors.items() if found}
    return _padded("Error of the attention output by layer", "Relative to the exact output.", rows, result)


def _padded(heading: str, note: str, rows: Mapping[str, list[str]], result: Result) -> Table | None:
    layers = max(map(len, rows.values()), default=0)
    filled = {name: [*cells, *[NOTHING] * (layers - len(cells))] for name, cells in rows.items()}
    return _grid(heading, note, [f"{layer}" for layer in range(layers)], filled, result) if layers else None


def distance_label(row: Mapping[str, Any]) -> str:
    """Return how far back the asked facts lie."""
    return f"{row['from_tokens']:,} to {row['to_tokens']:,}"


def distances(codecs: Sequence[Codec]) -> list[tuple[int, int]]:
    """Return every distance at which some codec was asked, in tokens, nearest first."""
    rows = [row for codec in codecs if codec["recall"] for row in codec["recall"]["by_distance"]]
    return sorted({(row["from_tokens"], row["to_tokens"]) for row in rows})


def recall_table(result: Result) -> Table | None:
    """Return facts recalled by how many tokens back they were said; first what the exact cache gives."""
    codecs = [codec for codec in measured(result) if codec["recall"]]
    buckets = distances(codecs)
    if not buckets:
        return None
    found = {
        codec["name"]: {(row["from_tokens"], row["to_tokens"]): row for row in codec["recall"]["by_distance"]}
        for codec in codecs
    }
    exact: dict[tuple[int, int], Mapping[str, Any]] = {}
    for rows in found.values():
        exact = rows | exact
    cells = {"exact cache": [_recalled(exact.get(bucket), "exact_uncompressed") for bucket in buckets]}
    cells |= {name: [_recalled(rows.get(bucket), "exact") for bucket in buckets] for name, rows in found.items()}
    heads = [f"{start:,} to {stop:,}" for start, stop in buckets]
    return _grid("Facts recalled by distance", "Distance in tokens from the question.", heads, cells, result)


def _recalled(row: Mapping[str, Any] | None, name: str) -> str:
    return f"{row[name]} of {row['asked']}" if row else NOTHING


def link_table(result: Result) -> Table | None:
    """Return seconds until the model can go on, transfer and restore, by the speed of the link."""
    links = _in_order(result, result["economics"]["link_seconds"])
    speeds = sorted({speed for row in links.values() for speed in row}, key=float)
    rows = {name: [spell(row.get(speed), "seconds") for speed in speeds] for name, row in links.items()}
    prefill = spell(result["economics"]["prefill_seconds"], "seconds")
    note = f"Transfer and restore; reading the session again takes {prefill}."
    return _grid("Seconds to the first token", note, [f"{speed} Mbit/s" for speed in speeds], rows, result)


def longest_table(result: Result) -> Table | None:
    """Return how many tokens of context fit into a budget of memory or disk."""
    found = _in_order(result, result["economics"]["longest_context_tokens"])
    budgets = list(dict.fromkeys(budget for row in found.values() for budget in row))
    rows = {name: [spell(row.get(budget), "count") for budget in budgets] for name, row in found.items()}
    note = f"How many tokens' files fit into a budget, at the bytes a token of {result['sessions']['tokens']:,} stored."
    return _grid("Longest context, tokens", note, budgets, rows, result)


def lengths_table(result: Result) -> Table | None:
    """Return prefill and restore by length of session."""
    rows, names = result["economics"].get("lengths") or [], ("prefill", "prefill_seconds", "restore_seconds")
    note = "Medians after a warm-up, all calls taking turns." + beside_other_work(result)
    return _by_tokens("Restore and prefill by length", note, names, "seconds", rows, result)


def memory_table(result: Result) -> Table | None:
    """Return bytes by length of session."""
    rows = result["economics"]["memory"]
    note = f"Files of {result['sessions']['tokens']:,} tokens were measured; other lengths are in proportion."
    return _by_tokens("Bytes by length", note, ("16-bit cache", "raw_bytes", "coded_bytes"), "bytes", rows, result)


def _by_tokens(
    heading: str, note: str, names: tuple[str, str, str], style: str, rows: Sequence[Any], result: Result
) -> Table | None:
    """Return a table with a column for each length, a row for the yardstick and one for each codec.

    `names` are the yardstick's, that of its field, and that of the field with a value for each codec.
    """
    if not rows:
        return None
    first, first_field, field = names
    ordered = sorted(rows, key=lambda row: row["tokens"])
    listed = [codec["name"] for codec in measured(result) if any(codec["name"] in row[field] for row in ordered)]
    cells = {first: [spell(row[first_field], style) for row in ordered]}
    cells |= {name: [spell(row[field].get(name), style) for row in ordered] for name in listed}
    return _grid(heading, note, [f"{row['tokens']:,} tokens" for row in ordered], cells, result)


def hops_table(result: Result) -> Table | None:
    """Return KL and agreement after each further encoding of what was decoded, and how that is to be judged."""
    hops = _in_order(result, result.get("hops") or {})
    numbers = sorted({row["hop"] for rows in hops.values() for row in rows})
    codecs = {codec["name"]: codec for codec in measured(result)}
    cells = {}
    for name, rows in hops.items():
        found = {row["hop"]: _hop_cell(row) for row in rows}
        word = promised_word(codecs[name])
        judged = [NOTHING if word is None else promise_over_hops(rows, word), tier_all_the_way(rows)]
        cells[name] = [*judged, tier_together(rows), *(found.get(number, NOTHING) for number in numbers)]
    heads = [f"{number} hop{'s' if number != 1 else ''}" for number in numbers]
    sessions = max((row.get("sessions") or 1 for rows in hops.values() for row in rows), default=1)
    note = (
        "A session saved, resumed, gone on with and saved again: KL in nats from the model that was never interrupted, "
        f"and share of equal next tokens, over {sessions} session{'s' if sessions > 1 else ''}. First whether the "
        "three bounds of the codec's quality word hold at every hop, though a word promises them for one store only; "
        "then the tier whose bounds do, and the tier of all hops taken together, for single hops have few positions."
    )
    table = _grid(
        "Drift over hops", note, ["its word's bounds", "tier at every hop", "over all hops", *heads], cells, result
    )
    return table and replace(table, folded=False)


def _hop_cell(row: Mapping[str, Any]) -> str:
    return f"{spell(row['kl_nats'], 'nats')}, {spell(row['top1_agreement'], 'share')}"


def promise_over_hops(rows: Sequence[Mapping[str, Any]], word: str) -> str:
    """Return whether a quality word's three bounds hold at every hop, or the first hop that breaks one."""
    if not all("tier" in row for row in rows):
        return NOTHING
    kept = TIER_NAMES[: TIER_NAMES.index(word) + 1]
    broken = [row["hop"] for row in sorted(rows, key=lambda row: row["hop"]) if row["tier"] not in kept]
    return f"broken at {len(broken)} of {len(rows)}, first {broken[0]}" if broken else f"kept at all {len(rows)}"


def tier_all_the_way(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the strictest tier that every hop keeps; "none" where a hop keeps none, a dash where it was not judged."""
    if not all("tier" in row for row in rows):
        return NOTHING
    tiers = [row["tier"] for row in rows]
    return "none" if None in tiers else str(max(tiers, key=TIER_NAMES.index))


def tier_together(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return means over all hops, and the tier whose three bounds they keep; a dash where context lost is not known."""
    if not all(row.get("context_lost") is not None for row in rows):
        return NOTHING
    kl, lost, top1 = (
        sum(row[name] for row in rows) / len(rows) for name in ("kl_nats", "context_lost", "top1_agreement")
    )
    return f"{tier_of(kl, lost, top1) or 'none'}: {spell(kl, 'nats')}, {spell(top1, 'share')}"


def strip_tables(result: Result) -> list[Table]:
    """Return the dearest tokens of the shown session and the most damaged of its continuation."""
    strip = result.get("strip")
    if not strip:
        return []
    return [
        _extremes("Dearest tokens", "bits", strip.get("tokens"), [round(bits) for bits in strip["bits"]], "count"),
        _extremes("Most damaged tokens", "KL, nats", strip.get("continuation"), strip["damage_nats"], "nats"),
    ]


def _extremes(heading: str, name: str, texts: Sequence[str] | None, values: Sequence[float], style: str) -> Table:
    """Return the largest values with their positions, and their texts where these may be shown."""
    order = sorted(range(len(values)), key=lambda index: -values[index])[:MOST_STRIP_ROWS]
    said = [[] if texts is None else [texts[index] or NOTHING] for index in order]
    rows = [Row((f"{index}", *words, spell(values[index], style))) for index, words in zip(order, said, strict=True)]
    columns = (Column("token", number=False), *([Column("text", number=False)] if texts is not None else []))
    return Table(heading, f"The first {len(rows)} of {len(values):,}.", (*columns, Column(name)), tuple(rows))
