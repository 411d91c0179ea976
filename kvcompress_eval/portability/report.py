"""The result as tables: in the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from kvcompress.report.tables import inline, markdown_table
from kvcompress.report.terminal import print_table

Row = dict[str, Any]
Grid = tuple[str, Sequence[str], list[list[str]]]


def encoding_grid(result: Row) -> Grid:
    """Return title, columns and cells of what each condition encoded, a row a condition and session."""
    columns = ("condition", "session", "CPU, threads", "file bytes", "same cache", "same file", "same snapshot")
    in_force = {row["label"]: row["in_force"] for row in result["conditions"]}
    lines = []
    for row in result["encodings"]:
        force = in_force[row["condition"]]
        place = f"{force['cpu']}, {force['threads']}"
        place += f", {force['device']}" if force["device"] != "cpu" else ""
        start = [row["condition"], row["session"], place]
        if row["refused"]:
            lines.append([*start, "refused", row["refused"], "", _same_snapshot(row)])
            continue
        same = [_yes(row["same_cache_as_reference"]), _yes(row["same_file_as_reference"]), _same_snapshot(row)]
        lines.append([*start, f"{row['file_bytes']:,}", *same])
    lines += [[row["label"], "", "not at hand", row["why"], "", "", ""] for row in result["absent"]]
    return "Encoded, against the reference", columns, lines


def pair_grid(result: Row) -> Grid:
    """Return title, columns and cells of every pair, over all sessions."""
    columns = ("encoded in", "decoded in", "symbols", "largest difference", "mean KL", "max KL", "greedy agreement")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in result["pairs"]:
        groups.setdefault((row["encoded_in"], row["decoded_in"]), []).append(row)
    return (
        "Decoded, against the reference",
        columns,
        [[*pair, *_pair_cells(rows, result)] for pair, rows in groups.items()],
    )


def golden_grid(result: Row) -> Grid:
    """Return title, columns and cells of the golden file, a row a condition."""
    columns = ("condition", "symbols", "tensors", "largest difference", "relative")
    lines = []
    for row in result["golden"]["rows"]:
        if row["refused"]:
            lines.append([row["condition"], "refused", row["refused"], "", ""])
            continue
        sizes = [f"{row[name]:.2g}" for name in ("largest_difference", "largest_relative_difference")]
        lines.append(
            [row["condition"], *(_identical(row[name]) for name in ("symbols_identical", "tensors_identical")), *sizes]
        )
    if result["golden"]["why_absent"]:
        lines.append(["none", "not at hand", result["golden"]["why_absent"], "", ""])
    return "Golden file, against what was written when it was made", columns, lines


def verdict_lines(result: Row) -> list[str]:
    """Return the verdict in words, and what qualifies it."""
    verdict = result["verdict"]
    compared, broken = verdict["pairs_compared"], verdict["symbols_differ"]
    if broken:
        lines = [f"BROKEN: symbols changed in {len(broken)} of {compared} decodings, first {broken[0]}."]
    else:
        lines = [f"Symbols survived bytes in all {compared} decodings." if compared else "Nothing could be compared."]
    if verdict["golden_symbols_differ"]:
        lines.append(f"BROKEN: the golden file's symbols changed in {', '.join(verdict['golden_symbols_differ'])}.")
    if verdict["same_snapshot_unexplained"]:
        names = ", ".join(dict.fromkeys(verdict["same_snapshot_unexplained"]))
        lines.append(f"BROKEN: rounding does not explain other bytes of the same snapshot in {names}.")
    if verdict["pairs_refused"]:
        lines.append(f"{verdict['pairs_refused']} pairs were refused; their cells say why.")
    unmoved = unmoved_conditions(result)
    if unmoved:
        lines.append(f"Computed here exactly as the reference, to the last bit, so shows little: {', '.join(unmoved)}.")
    return lines


def unmoved_conditions(result: Row) -> list[str]:
    """Return the conditions, the reference apart, in which cache, decoded cache and logits were the reference's."""
    moved = {row["condition"] for row in result["encodings"] if not row["same_cache_as_reference"]}
    moved |= {row["decoded_in"] for row in result["pairs"] if row.get("largest_difference") != 0.0 or _kl_moved(row)}
    return [row["label"] for row in result["conditions"][1:] if row["label"] not in moved]


def markdown(result: Row) -> str:
    """Return the whole report as Markdown."""
    lines = ["# Decode and resume across devices", "", *verdict_lines(result), "", _setting(result), ""]
    for title, columns, cells in (encoding_grid(result), pair_grid(result), golden_grid(result)):
        lines += [f"## {title}", "", markdown_table(columns, [list(map(inline, row)) for row in cells], numbers=()), ""]
    return "\n".join([*lines, *_legend(result)]) + "\n"


def show(result: Row) -> None:
    """Print the tables and the verdict."""
    for title, columns, cells in (encoding_grid(result), pair_grid(result), golden_grid(result)):
        print_table(columns, cells, title=title)
        print()
    for line in verdict_lines(result):
        typer.secho(line, fg="red" if line.startswith("BROKEN") else None)


def _pair_cells(rows: list[Row], result: Row) -> list[str]:
    """Return the cells of a pair: all must be identical, means of means, maxima and minima of the rest."""
    known = [row["symbols_identical"] for row in rows if row["symbols_identical"] is not None]
    cells = [_identical(all(known)) if known else "-"]
    differences = [row["largest_difference"] for row in rows if "largest_difference" in row]
    cells.append(f"{max(differences):.2g}" if differences else "-")
    measured = [row for row in rows if "kl_mean_nats" in row]
    if not measured:
        return [*cells, f"refused: {next((row['refused'] for row in rows if row['refused']), 'no reference')}", "", ""]
    mean = sum(row["kl_mean_nats"] for row in measured) / len(measured)
    greedy = min(row["greedy_agreement_tokens"] for row in measured)
    worst = max(row["kl_max_nats"] for row in measured)
    return [*cells, f"{mean:.2g}", f"{worst:.2g}", f"{greedy} of {result['greedy_tokens']}"]


def _same_snapshot(row: Row) -> str:
    """Say whether the shared snapshot gave the same bytes, and if not, why."""
    if row["same_snapshot_same_bytes"]:
        return "same bytes"
    found = row["explanation"]
    count = f"{found['differing']} of {found['symbols']:,} symbols"
    if not found["explained"]:
        return f"UNEXPLAINED: {count} differ by up to {found['largest_change']}"
    return f"rounding: {count} differ, each within {found['farthest_outside_steps']:.1g} steps of its bin"


def _setting(result: Row) -> str:
    sessions, versions = ", ".join(result["sessions"]), result["versions"]
    return (
        f"Model {result['model']}, codec {result['codec']}, quality {result['quality']}; {result['tokens']} tokens of "
        f"{sessions}; {result['machine']}, torch {versions['torch']}, kvcompress {versions['kvcompress']}. "
        f"Made by `{result['command']}`."
    )


def _legend(result: Row) -> list[str]:
    return [
        "Same cache, same file: whether recording and encoding in the condition gave the reference's bytes; where the "
        "cache differs the file may. Same snapshot: whether encoding the reference's cache gave the reference's bytes.",
        "",
        "Symbols: what the decoder read against what the encoder rounded to. Largest difference: of the decoded cache "
        f"against the reference's decoding of the same file. KL: of {result['continuation_tokens']} predictions after "
        "resuming, in nats, against the reference's after resuming from the same file. Greedy agreement: tokens before "
        "the first difference. The model runs on the condition's device, the codec always on the CPU.",
    ]


def _kl_moved(row: Row) -> bool:
    return row.get("kl_max_nats") != 0.0


def _identical(same: bool) -> str:
    return "identical" if same else "DIFFER"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
