"""The leaderboard in words: one table a board, the best first, controls among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eval.leaderboard.candidates import ONE_TIER, SEARCH
from kvcompress.report.files import write_files
from kvcompress.report.spelling import spell, with_error
from kvcompress.report.tables import markdown_table
from kvcompress_eval.suite.bootstrap import estimate_mean

Row = dict[str, Any]
CONTROLS = ("random", "sink_recent", ONE_TIER)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return for each board its candidates' figures over sessions, the least KL first."""
    boards: dict[str, Any] = {}
    for board in dict.fromkeys(row["board"] for row in rows):
        of_board = [row for row in rows if row["board"] == board and "failed" not in row]
        base = {row["session"]: row["kl_nats"] for row in of_board if row["candidate"] == ONE_TIER}
        found = [_entry(name, of_board, base) for name in dict.fromkeys(row["candidate"] for row in of_board)]
        sessions = {row["session"] for row in rows if row["board"] == board}
        for entry in found:
            entry["not_met"] = len(sessions) - entry["sessions"]
        boards[board] = sorted(found, key=lambda entry: entry["kl_nats"]["mean"])
    return boards


def _entry(name: str, of_board: Sequence[Row], base: dict[str, float]) -> dict[str, Any]:
    rows = [row for row in of_board if row["candidate"] == name]
    categories = sorted({row["category"] for row in rows})
    entry = {
        "candidate": name,
        "sessions": len(rows),
        "kl_nats": estimate_mean([row["kl_nats"] for row in rows]).to_json(),
        "context_lost": _total(rows, "kl_nats") / max(_total(rows, "worth_nats"), 1e-12),
        "sensitive_kl_nats": _total(rows, "sensitive_kl_nats") / max(1, _total(rows, "sensitive")),
        "top1_agreement": float(np.mean([row["top1_agreement"] for row in rows])),
        "file_bytes": float(np.mean([row["file_bytes"] for row in rows])),
        "kept_tokens": float(np.mean([row["kept_tokens"] for row in rows])),
        "size_ratio": _total(rows, "raw_bytes") / max(1, _total(rows, "file_bytes")),
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "by_category": {c: float(np.mean([r["kl_nats"] for r in rows if r["category"] == c])) for c in categories},
        "better_than_one_tier": sum(row["kl_nats"] < base.get(row["session"], -math.inf) for row in rows),
    }
    counted = (
        "asked",
        "recalled",
        "recalled_exact_cache",
        "rules",
        "rules_lost",
        "rules_kept",
        "rules_kept_exact_cache",
    )
    return entry | {key: int(_total(rows, key)) for key in counted}


def _total(rows: Sequence[Row], key: str) -> float:
    return float(sum(row[key] for row in rows))


def smaller_at_equal_kl(entries: Sequence[dict[str, Any]]) -> float | None:
    """Return how many times smaller the search's file is where its KL is that of one tier, None outside its sizes."""
    return _bytes_over(entries, of=ONE_TIER, curve=SEARCH, inverse=False)


def larger_at_equal_kl(entries: Sequence[dict[str, Any]]) -> float | None:
    """Return how many times larger one tier's file is where its KL is that of the search, None outside its sizes."""
    return _bytes_over(entries, of=SEARCH, curve=ONE_TIER, inverse=True)


def _bytes_over(entries: Sequence[dict[str, Any]], of: str, curve: str, *, inverse: bool) -> float | None:
    """Return the bytes of a candidate over those at which a curve of others has its KL, or the inverse.

    Between the sizes that ran, the logarithm of the KL is taken as linear in the logarithm of the bytes.
    """
    met = [entry for entry in entries if not entry["not_met"]]
    points = sorted(_logs(entry) for entry in met if str(entry["candidate"]).startswith(curve))
    single = next((entry for entry in met if entry["candidate"] == of), None)
    if single is None:
        return None
    own, aim = _logs(single)
    for (small, worse), (large, better) in pairwise(points):
        if better <= aim <= worse:
            share = 0.0 if worse == better else (worse - aim) / (worse - better)
            found = own - (small + share * (large - small))
            return math.exp(-found if inverse else found)
    return None


def _logs(entry: dict[str, Any]) -> tuple[float, float]:
    """Return the logarithms of mean bytes and mean KL."""
    return math.log(entry["file_bytes"]), math.log(max(entry["kl_nats"]["mean"], 1e-12))


def markdown(result: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["# Scorers and plans", "", f"Made by `{result['command']}`.", ""]
    lines += [f"{result['sessions']} sessions of {result['tokens']:,} tokens, {result['continuation']} continued.", ""]
    for board, entries in result["boards"].items():
        lines += [f"## {_title(board)}", ""]
        smaller, larger = (result[name].get(board) for name in ("smaller_at_equal_kl", "larger_at_equal_kl"))
        if smaller is not None:
            lines += [f"At the mean KL of one tier the search's file is {smaller:.2f} times smaller.", ""]
        if larger is not None:
            lines += [f"At the mean KL of the search the file of one tier is {larger:.2f} times larger.", ""]
        lines += _rows(entries)
    return "\n".join(lines)


def _title(board: str) -> str:
    kind, _, what = board.partition(":")
    titles = {
        "bytes": f"Equal bytes: the size of the one-tier file at {what!r}",
        "kept": f"Equal kept tokens: {what} of them, nothing coded",
        "half": f"Half of the tokens dropped from memory, as good as one tier at {what!r} where a plan can be",
        "quality": f"As good as one tier at {what!r}, smaller",
    }
    return titles.get(kind, board)


def _rows(entries: Iterable[dict[str, Any]]) -> list[str]:
    entries = list(entries)
    categories = sorted({name for entry in entries for name in entry["by_category"]})
    head = [
        "candidate",
        "KL (nats)",
        "sensitive KL",
        "top-1",
        "bytes",
        "kept",
        "facts",
        "checks kept",
        "rules lost",
        *categories,
        "s",
    ]
    rows = []
    for entry in entries:
        name = f"*{entry['candidate']}*" if entry["candidate"].startswith(CONTROLS) else entry["candidate"]
        name += f" (not met in {entry['not_met']})" if entry["not_met"] else ""
        cells = [
            name,
            with_error(entry["kl_nats"], "fixed"),
            spell(entry["sensitive_kl_nats"], "fixed"),
            f"{spell(entry['top1_agreement'], 'points')} %",
            spell(entry["file_bytes"] or None, "count"),
            spell(entry["kept_tokens"], "count"),
            f"{entry['recalled']} of {entry['recalled_exact_cache']}",
            f"{entry['rules_kept']} of {entry['rules_kept_exact_cache']}",
            f"{entry['rules_lost']} of {entry['rules']}",
            *(spell(entry["by_category"].get(c), "fixed") for c in categories),
            f"{entry['seconds']:.2f}",
        ]
        rows.append(cells)
    return [markdown_table(head, rows), ""]


def _of_boards(
    boards: dict[str, list[dict[str, Any]]], ratio: Callable[[Sequence[dict[str, Any]]], float | None]
) -> dict[str, float]:
    found = {board: ratio(entries) for board, entries in boards.items()}
    return {board: value for board, value in found.items() if value is not None}


def write_board(rows: Sequence[Row], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write `prune.json` and `prune.md` and return the result."""
    boards = summarise(rows)
    result = {
        **settings,
        "sessions": len({row["session"] for row in rows}),
        "boards": boards,
        "smaller_at_equal_kl": _of_boards(boards, smaller_at_equal_kl),
        "larger_at_equal_kl": _of_boards(boards, larger_at_equal_kl),
    }
    write_files(out, {"prune.json": json.dumps(result, indent=1) + "\n", "prune.md": markdown(result)})
    return result
