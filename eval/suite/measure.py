"""Measure one codec on one session: real file, true decode, resume, compare. One flat row comes out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from eval.rivals.protocol import Rival
from eval.suite.attention import attention_errors
from eval.suite.branches import branch_divergence
from eval.suite.greedy import greedy_divergence
from eval.suite.memory import peak_bytes
from eval.suite.sensitive import sensitive_positions
from eval.suite.subject import Subject, recalled
from kvcompress.container import load, save
from kvcompress.fidelity import compare_logits, continuation_logits
from kvcompress.hf import restore
from kvcompress.instructions import count_kept

Row = dict[str, Any]
GREEDY_TOKENS = 48


@torch.inference_mode()
def measure_point(model: Any, tokenizer: Any, rival: Rival, subject: Subject, path: Path, *, thorough: bool) -> Row:
    """Return the row of one codec and one session.

    Args:
        model: The model both caches belong to.
        tokenizer: Its tokenizer.
        rival: The codec.
        subject: The session, with what the exact cache predicts.
        path: Where its file is written, to be measured by `stat` and read back.
        thorough: Measure sampled branches, greedy divergence, attention error and memory too.
    """
    exact_snapshot = subject.snapshot
    clock = [time.perf_counter()]
    encoded = rival.encode(exact_snapshot)
    save(path, encoded, force=True)
    clock.append(time.perf_counter())
    decoded = rival.decode(load(path))
    clock.append(time.perf_counter())
    cache = restore(decoded, model)
    clock.append(time.perf_counter())
    tokens, rest = exact_snapshot.tokens, subject.continuation
    logits = continuation_logits(model, cache, rest, tokens)
    report = compare_logits(subject.exact, logits, subject.short, rest)
    sensitive = sensitive_positions(subject.worth_nats)
    same = (subject.exact.argmax(-1) == logits.argmax(-1)).cpu()
    per_token = torch.tensor(report.per_token_kl_nats, dtype=torch.float64)
    row: Row = {
        "codec": rival.name,
        "family": rival.family,
        "session": subject.session.id,
        "category": subject.session.category,
        "file_bytes": path.stat().st_size,
        "raw_bytes": exact_snapshot.raw_bytes,
        "sections": {name: len(data) for name, data in encoded.sections.items()},
        "encode_seconds": clock[1] - clock[0],
        "decode_seconds": clock[2] - clock[1],
        "restore_seconds": clock[3] - clock[1],
        "prefill_seconds": subject.prefill_seconds,
        "per_token_kl_nats": per_token.tolist(),
        "worth_nats": float(subject.worth_nats.mean()),
        "sensitive": int(sensitive.sum()),
        "sensitive_kl_nats": float(per_token[sensitive].sum()),
        "sensitive_same": int(same[sensitive].sum()),
        "top1_agreement": report.top1_agreement,
        "top5_agreement": report.top5_agreement,
        "ppl_ratio": report.ppl_ratio,
        "rms_probability_change": report.rms_probability_change,
    }
    row |= _asked(model, tokenizer, subject, cache)
    return row | (_thorough(model, rival, subject, cache) if thorough else {})


def _asked(model: Any, tokenizer: Any, subject: Subject, cache: Any) -> Row:
    """Return recall of planted facts, question by question, and kept instructions."""
    found = recalled(model, cache, tokenizer, subject.questions, subject.snapshot.tokens)
    return {
        "questions": [
            [question.distance_tokens, answered, answered_exactly]
            for question, answered, answered_exactly in zip(subject.questions, found, subject.recalled, strict=True)
        ],
        "rules_checked": 2 * len(subject.rules),
        "rules_kept": count_kept(model, cache, tokenizer, subject.rules, subject.snapshot.token_ids),
        "rules_kept_uncompressed": subject.kept,
    }


def _thorough(model: Any, rival: Rival, subject: Subject, cache: Any) -> Row:
    snapshot = subject.snapshot
    opening = subject.continuation[:1].tolist()
    branches = branch_divergence(model, subject.cache, cache, snapshot.token_ids, opening)
    greedy = greedy_divergence(model, subject.cache, cache, snapshot.token_ids, opening, GREEDY_TOKENS)
    errors = attention_errors(model, subject.cache, cache, subject.continuation, snapshot.tokens)
    _, peak = peak_bytes(lambda: rival.encode(snapshot))
    return {
        "branch_divergence_nats": branches.jensen_shannon_nats,
        "first_divergence_tokens": greedy.divergence_tokens,
        "divergence_margin_nats": greedy.margin_nats,
        "attention_errors": list(errors),
        "peak_memory_bytes": peak,
    }
