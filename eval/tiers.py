"""Every quality word over the example sessions: sizes by stat, fidelity after decode and resume, recall."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from kvcompress.container import load, save
from kvcompress.fidelity import TIERS, compare_logits, continuation_logits, short_context_logits
from kvcompress.harvest import tokenized_sessions
from kvcompress.hf import capture, load_model, restore
from kvcompress.plan import encode_at_quality
from kvcompress.recall import count_exact, questions
from kvcompress.zoo import DEFAULT_MODEL, find_checkpoint, load_codec

SESSIONS = Path("examples/sessions.jsonl")
CONTINUATION_TOKENS = 128
_MARKS = ("<!-- results -->\n", "<!-- /results -->\n")


def tiers(tokens: int, count: int, out: Path, *, readme: bool) -> None:
    """Measure, print a Markdown table, keep the JSON, and write the table into the README if asked."""
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    codec = load_codec()
    rows: dict[str, list[dict[str, float]]] = {tier.name: [] for tier in TIERS}
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        path = Path(temporary) / "session.kvz"
        for session, ids in tokenized_sessions(model, tokenizer, SESSIONS):
            if len(ids) < tokens + CONTINUATION_TOKENS or len(rows["usable"]) == count:
                continue
            stored, rest = ids[:tokens], ids[tokens : tokens + CONTINUATION_TOKENS]
            snapshot = capture(model, stored, tokenizer=tokenizer)
            exact_cache = restore(snapshot, model)
            exact = continuation_logits(model, exact_cache, rest, tokens)
            short = short_context_logits(model, stored, rest)
            asked = questions(session, tokenizer, stored.tolist())
            known = count_exact(model, exact_cache, tokenizer, asked, stored)
            for name, found in rows.items():
                save(path, encode_at_quality(codec, snapshot, name), force=True)
                cache = restore(codec.decode(load(path)), model)
                report = compare_logits(exact, continuation_logits(model, cache, rest, tokens), short, rest)
                recalled = count_exact(model, cache, tokenizer, asked, stored)
                sizes = {"file_bytes": path.stat().st_size, "raw_bytes": snapshot.raw_bytes}
                recall = {"asked": len(asked), "exact": recalled, "exact_uncompressed": known}
                found.append(sizes | recall | _numbers(report.to_json()))
    result = {name: summarise(found) for name, found in rows.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"tokens": tokens, "tiers": result}, indent=1) + "\n")
    table = markdown(result, tokens)
    print(table)
    if readme:
        write_between_marks(Path("README.md"), table)


def _numbers(report: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in report.items() if isinstance(value, int | float)}


def summarise(found: list[dict[str, float]]) -> dict[str, float]:
    """Return means over sessions; ratios of sums for sizes and context lost."""
    mean = {key: sum(row[key] for row in found) / len(found) for key in found[0]}
    return {
        "sessions": len(found),
        "size_ratio": mean["raw_bytes"] / mean["file_bytes"],
        "smallest_size_ratio": min(row["raw_bytes"] / row["file_bytes"] for row in found),
        "kl_nats": mean["kl_nats"],
        "context_worth_nats": mean["context_worth_nats"],
        "context_lost": mean["kl_nats"] / mean["context_worth_nats"],
        "top1_agreement": mean["top1_agreement"],
        "ppl_ratio": mean["ppl_ratio"],
        "asked": sum(row["asked"] for row in found),
        "recalled": sum(row["exact"] for row in found),
        "recalled_uncompressed": sum(row["exact_uncompressed"] for row in found),
    }


def markdown(result: dict[str, dict[str, float]], tokens: int) -> str:
    """Return the README's table."""
    lines = [
        f"| quality ({tokens:,} tokens) | size ratio | mean KL (nats) | context lost | top-1 | facts recalled |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result.items():
        lines.append(
            f"| {name} | {row['size_ratio']:.1f} | {row['kl_nats']:.4f} | {row['context_lost']:.2%} | "
            f"{row['top1_agreement']:.1%} | {row['recalled']:.0f} of {row['asked']:.0f} "
            f"(exact cache: {row['recalled_uncompressed']:.0f}) |"
        )
    first = next(iter(result.values()))
    lines.append(
        f"\nMeans over {first['sessions']:.0f} sessions never used for fitting; context worth "
        f"{first['context_worth_nats']:.2f} nats. Made by `python -m eval tiers --readme`.\n"
    )
    return "\n".join(lines)


def write_between_marks(path: Path, table: str) -> None:
    """Replace what stands between the result marks of a file."""
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(_MARKS[0], 1)
    tail = rest.split(_MARKS[1], 1)[1]
    path.write_text(head + _MARKS[0] + table + _MARKS[1] + tail, encoding="utf-8")
