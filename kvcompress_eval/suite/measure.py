"""Measure one codec on one session: real file, true decode, resume, compare. One flat row comes out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from kvcompress.codec.settings import settings_of
from kvcompress.format.container import load, save
from kvcompress.hf import restore
from kvcompress.metrics.fidelity import continuation_logits
from kvcompress.metrics.instructions import count_kept
from kvcompress_eval.baselines.protocol import Baseline
from kvcompress_eval.baselines.tinyvae import stored_in_words
from kvcompress_eval.suite.attention import attention_errors
from kvcompress_eval.suite.branches import branch_divergence
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.memory import peak_bytes
from kvcompress_eval.suite.positions import compare
from kvcompress_eval.suite.probes import Probes, probe_row
from kvcompress_eval.suite.subject import Subject, recalled

Row = dict[str, Any]


@torch.inference_mode()
def measure_point(
    model: Any, tokenizer: Any, baseline: Baseline, subject: Subject, probes: Probes, path: Path, *, thorough: bool
) -> Row:
    """Return the row of one codec and one session.

    Its figures are over the first 128 tokens that followed, as the tiers' bounds are; where more followed, `whole`
    holds the same over all of them.

    Args:
        model: The model both caches belong to.
        tokenizer: Its tokenizer.
        baseline: The codec.
        subject: The session, with what the exact cache predicts.
        probes: What is asked beyond what followed.
        path: Where its file is written, to be measured by `stat` and read back.
        thorough: Measure sampled branches, attention error and memory too.
    """
    exact_snapshot = subject.snapshot
    clock = [time.perf_counter()]
    save(path, baseline.encode(exact_snapshot), force=True)
    clock.append(time.perf_counter())
    encoded = load(path)
    decoded = baseline.decode(encoded)
    clock.append(time.perf_counter())
    cache = restore(decoded, model)
    clock.append(time.perf_counter())
    positions = compare(subject, continuation_logits(model, cache, subject.continuation, exact_snapshot.tokens))
    row: Row = {
        "codec": baseline.name,
        "family": baseline.family,
        "session": subject.session.id,
        "category": subject.session.category,
        "stored": stored_in_words(encoded),
        "unlike": settings_of(encoded).unlike,
        "file_bytes": path.stat().st_size,
        "raw_bytes": exact_snapshot.raw_bytes,
        "sections": {name: len(data) for name, data in encoded.sections.items()},
        "encode_seconds": clock[1] - clock[0],
        "decode_seconds": clock[2] - clock[1],
        "restore_seconds": clock[3] - clock[1],
        "prefill_seconds": subject.prefill_seconds,
        **positions.figures(NEAR_TOKENS),
    }
    if len(subject.continuation) > NEAR_TOKENS:
        row["whole"] = positions.figures(len(subject.continuation))
    row |= _asked(model, tokenizer, subject, cache)
    row |= probe_row(model, baseline, probes, cache, exact_snapshot.tokens)
    return row | (_thorough(model, baseline, subject, cache) if thorough else {})


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


def _thorough(model: Any, baseline: Baseline, subject: Subject, cache: Any) -> Row:
    snapshot = subject.snapshot
    opening = subject.continuation[:1].tolist()
    branches = branch_divergence(model, subject.cache, cache, snapshot.token_ids, opening)
    errors = attention_errors(model, subject.cache, cache, subject.continuation, snapshot.tokens)
    _, peak = peak_bytes(lambda: baseline.encode(snapshot))
    return {
        "branch_divergence_nats": branches.jensen_shannon_nats,
        "attention_errors": list(errors),
        "peak_memory_bytes": peak,
    }
