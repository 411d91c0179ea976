"""Restoring a session against prefilling it again: paired, in one process, medians."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kvcompress.codec.directory import load_codec
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.settings import TinyVAESettings
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.format.container import load, save
from kvcompress.hf import capture, load_model, restore
from kvcompress.hub.bundled import DEFAULT_MODEL
from kvcompress.metrics.timing import bring_back, in_turns, prefill
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.scorers.registry import find_scorer
from kvcompress.prune.session import Asked, SessionPlanner
from kvcompress.report.terminal import print_table

SESSIONS = Path("examples/sessions.jsonl")
ROUNDS = 15


def long_session(model: Any, tokenizer: Any, tokens: int) -> torch.Tensor:
    """Return `tokens` token ids of example sessions, one after another."""
    ids = torch.cat([ids for _, ids in tokenized_sessions(model, tokenizer, SESSIONS)])
    if len(ids) < tokens:
        raise InputError(f"the example sessions hold only {len(ids)} tokens")
    return ids[:tokens]


def bench(tokens: int, threads: int, out: Path) -> None:
    """Print and keep seconds of every step, and the floor: the matrix products of the synthesis alone."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model(DEFAULT_MODEL)
    codec = load_codec()
    ids = long_session(model, tokenizer, tokens)
    snapshot = capture(model, ids, tokenizer=tokenizer)
    result: dict[str, object] = {"tokens": tokens, "threads": threads}
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        path = Path(temporary) / "session.kvz"
        save(path, encode_at_quality(codec, snapshot, "transparent"))
        encoded = load(path)
        decoded = codec.decode(encoded)
        result["file_bytes"], result["raw_bytes"] = path.stat().st_size, snapshot.raw_bytes
        vae, qp = codec.vae(0), TinyVAESettings.from_json(encoded.settings).qp
        width = vae.config.prior_width + vae.active_rank(codec.qps(0, snapshot.token_ids, qp))
        left, right = torch.randn(tokens, width), torch.randn(width, vae.config.channels)
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: codec.encode(snapshot, qp),
            "open": lambda: load(path),
            "decode": lambda: codec.decode(encoded),
            "build_cache": lambda: restore(decoded, model, copy=False),
            "restore": partial(bring_back, model, codec, path),
            "prefill": partial(prefill, model, ids),
            "floor_matrix_products": lambda: left @ right,
        }
        result["seconds"] = seconds = in_turns(calls, ROUNDS)
    result["prefill_over_restore"] = faster = seconds["prefill"] / seconds["restore"]
    _tell(f"{tokens} tokens, {threads} threads, transparent, medians of {ROUNDS} in turns", seconds, result, out)
    print(f"restoring is {faster:.1f} times faster than prefilling again")


def bench_planning(tokens: int, threads: int, out: Path) -> None:
    """Print and keep seconds of encoding one session in one tier, of the evidence, and of a quick plan beside them."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model(DEFAULT_MODEL)
    codec, asked = load_codec(), Asked(quality="high")
    snapshot = capture(model, long_session(model, tokenizer, tokens), tokenizer=tokenizer)
    qp, needs = codec.qp_of("high"), find_scorer(asked.scorers[0]).needs
    known = collect(model, snapshot, needs, codec=codec)

    def plan() -> None:
        SessionPlanner(codec, model, tokenizer, snapshot, asked, evidence=known).run_quickly()

    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: codec.encode(snapshot, qp),
        "evidence": lambda: collect(model, snapshot, needs, codec=codec),
        "quick_plan": plan,
    }
    seconds = in_turns(calls, ROUNDS // 3)
    beyond = seconds["quick_plan"] - seconds["encode"]
    share = beyond / (seconds["encode"] + seconds["evidence"])
    result = {"tokens": tokens, "threads": threads, "seconds": seconds, "planning_share": share}
    _tell(f"{tokens} tokens, {threads} threads, high, medians of {ROUNDS // 3} in turns", seconds, result, out)
    print(f"planning adds {100 * share:.0f} % to evidence and encoding, {beyond * 1000:.0f} ms")


def _tell(head: str, seconds: Mapping[str, float], result: Mapping[str, object], out: Path) -> None:
    """Print seconds and keep the result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(head)
    print_table(
        (), [(name.replace("_", " "), f"{value * 1000:.1f} ms") for name, value in seconds.items()], numbers=(1,)
    )
