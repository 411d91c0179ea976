"""The bundled codec keeps its promise on a session it has never seen: the main job, in small."""

from __future__ import annotations

from pathlib import Path

import torch

from kvcompress.codec.directory import load_codec
from kvcompress.codec.quality import encode_at_quality
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.format.container import load, save
from kvcompress.hf import capture, load_model, restore
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.metrics.fidelity import TIERS, fidelity

TOKENS, CONTINUATION_TOKENS, SESSIONS = 768, 192, 12


def test_transparent_is_ten_times_smaller_and_within_its_tier(sessions_file: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(find_checkpoint("reference-lm"))
    codec, transparent = load_codec(), TIERS[0]
    kl, lost, top1 = [], [], []
    for _, ids in tokenized_sessions(model, tokenizer, sessions_file)[:SESSIONS]:
        stored, rest = ids[:TOKENS], ids[TOKENS : TOKENS + CONTINUATION_TOKENS]
        snapshot = capture(model, stored, tokenizer=tokenizer)
        path = tmp_path / "a.kvz"
        save(path, encode_at_quality(codec, snapshot, "transparent"), force=True)
        assert snapshot.raw_bytes / path.stat().st_size >= 10
        decoded = restore(codec.decode(load(path)), model)
        report = fidelity(model, restore(snapshot, model), decoded, stored, rest)
        assert report.context_worth_nats > 0.1
        kl.append(report.kl_nats)
        lost.append(report.context_lost)
        top1.append(report.top1_agreement)
    assert sum(kl) / SESSIONS <= transparent.max_kl_nats
    assert sum(lost) / SESSIONS <= transparent.max_context_lost
    assert sum(top1) / SESSIONS >= transparent.min_top1_agreement


def test_context_is_worth_something_to_the_bundled_model(sessions_file: Path) -> None:
    from kvcompress.metrics.fidelity import context_worth_nats

    model, tokenizer = load_model(find_checkpoint("reference-lm"))
    torch.set_num_threads(1)
    worth = [
        context_worth_nats(model, ids[:768], ids[768:896])
        for _, ids in tokenized_sessions(model, tokenizer, sessions_file)[:3]
    ]
    assert sum(worth) / len(worth) >= 0.2
