"""Seconds and bytes of a run's codecs: over links, by length of session, from which length on restoring pays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvcompress.format.container import save
from kvcompress.hf import capture
from kvcompress.hf.generation import context_limit
from kvcompress.metrics.timing import bring_back, in_turns, prefill
from kvcompress_eval.baselines.protocol import Baseline
from kvcompress_eval.suite.economics import break_even_tokens, link_seconds, longest_context_tokens, memory_table
from kvcompress_eval.suite.rows import Rows, identity_of
from kvcompress_eval.suite.settings import SuiteSettings
from kvcompress_eval.suite.spoken import reason_of

if TYPE_CHECKING:
    from kvcompress_eval.suite.run import Suite

PREFILL = "prefill"
MEMORY_LENGTHS_TOKENS = (512, 1024, 2048, 8192, 32768)


def economics(suite: Suite, settings: SuiteSettings, chosen: Sequence[Baseline], rows: Rows) -> dict[str, Any]:
    """Return what the report says of cost, for some codecs that have rows."""
    lengths = kept_lengths(suite, settings, chosen, rows)
    chosen = [baseline for baseline in chosen if baseline.name not in suite.failures]
    held = {baseline.name: suite.rows[baseline.name] for baseline in chosen}
    size = {name: sum(row["file_bytes"] for row in found) / len(found) for name, found in held.items()}
    # Where they were timed in turns, a busy machine is fair to both; those taken session by session stand in for it.
    timed = next((row for row in lengths if row["tokens"] == settings.tokens), None)
    taken = {name: _middle(found, "restore_seconds") for name, found in held.items()}
    restore_seconds = timed["restore_seconds"] if timed else taken
    every = next(iter(suite.rows.values()))
    raw_per_token = suite.sample.raw_bytes // settings.tokens
    per_token = {name: total / settings.tokens for name, total in size.items()}
    tokens = [row["tokens"] for row in lengths]
    prefills = [row["prefill_seconds"] for row in lengths]
    return {
        "prefill_seconds": timed["prefill_seconds"] if timed else _middle(every, "prefill_seconds"),
        "restore_seconds": restore_seconds,
        "lengths": lengths,
        "break_even_tokens": {
            name: break_even_tokens(tokens, [row["restore_seconds"][name] for row in lengths], prefills)
            for name in held
        },
        "link_seconds": {name: link_seconds(size[name], restore_seconds[name]) for name in held},
        "memory": memory_table(MEMORY_LENGTHS_TOKENS, raw_per_token, per_token),
        "longest_context_tokens": {
            **({"raw16": longest_context_tokens(raw_per_token)} if "raw16" in suite.rows else {}),
            **{name: longest_context_tokens(value) for name, value in per_token.items()},
        },
    }


def kept_lengths(suite: Suite, settings: SuiteSettings, chosen: Sequence[Baseline], rows: Rows) -> list[dict[str, Any]]:
    """Return what was timed by length, in this part of the run or in an earlier one."""
    codecs = " ".join(f"{baseline.name}:{identity_of(baseline)}" for baseline in chosen)
    how = f"{settings.timed_lengths} {settings.repeats} times, {torch.get_num_threads()} threads"
    key = ("lengths", how, codecs, suite.chosen[0].digest)
    row = rows.get(key) or rows.add(key, {"lengths": _lengths(suite, settings, chosen)})
    found: list[dict[str, Any]] = row["lengths"]
    return found


def _middle(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(sorted(row[name] for row in rows)[len(rows) // 2])


def _lengths(suite: Suite, settings: SuiteSettings, chosen: Sequence[Baseline]) -> list[dict[str, Any]]:
    """Time restoring and prefilling at several lengths: medians after a warm-up, all calls taking turns."""
    ids = torch.cat([one.ids for one in suite.chosen])
    limit = min(context_limit(suite.model) or len(ids), len(ids))
    wanted = {int(share * settings.tokens) for share in settings.timed_lengths}
    found = []
    for tokens in sorted(n for n in wanted if 0 < n <= limit):
        with tempfile.TemporaryDirectory() as temporary:
            stored = ids[:tokens]
            snapshot = capture(suite.model, stored, tokenizer=suite.tokenizer)
            calls: dict[str, Callable[[], object]] = {}
            for number, baseline in enumerate(chosen):
                path = Path(temporary) / f"{number}.kvz"
                try:
                    save(path, baseline.encode(snapshot))
                    bring_back(suite.model, baseline, path)
                except Exception as error:  # its failure is its own, not the run's
                    suite.failures[baseline.name] = f"{tokens} tokens to be timed: {reason_of(error)}"
                    continue
                calls[baseline.name] = partial(bring_back, suite.model, baseline, path)
            del snapshot
            seconds = in_turns({PREFILL: partial(prefill, suite.model, stored), **calls}, settings.repeats)
            found.append({"tokens": tokens, "prefill_seconds": seconds.pop(PREFILL), "restore_seconds": seconds})
    return found
