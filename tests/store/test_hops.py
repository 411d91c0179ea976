"""Saved, resumed, continued and saved again, ten times: within the quality's bound, and nothing is coded twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kvcompress as kv
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.hf.generation import feed
from kvcompress.metrics.fidelity import fidelity
from kvcompress.store.store import Store

HOPS, FIRST, STEP, AFTER = 10, 96, 24, 64
EXAMPLES = Path(__file__).parents[2] / "examples"
SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def kl_after_hops(
    place: Path, model: Any, tokenizer: Any, codec: str, ids: Tensor, first: int, step: int, after: int, quality: str
) -> float:
    """Mean KL from the uninterrupted run over the last `after` of the tokens [N], the others stored hop by hop."""
    tokens, segments = len(ids) - after, list[str]()
    with Store(place, create=True, codec=codec) as store:
        stored = store.session("talk", create=True)
        stored.append(kv.capture(model, ids[:first], tokenizer=tokenizer), quality=quality)
        for end in range(first + step, tokens + 1, step):
            resumed = stored.resume(model, tokenizer)
            feed(model, resumed.cache, ids[end - step : end], end - step)
            stored.append(kv.capture(model, ids[:end], tokenizer=tokenizer, cache=resumed.cache), quality=quality)
            turns = [turn.segment for turn in stored.turns()]
            assert turns[: len(segments)] == segments
            segments = turns
    with Store(place, codec=codec) as again:
        assert len(segments) == len(again.session("talk").turns()) == HOPS + 1
        hopped = again.session("talk").resume(model, tokenizer).cache
    exact = kv.restore(kv.capture(model, ids[:tokens], tokenizer=tokenizer), model)
    return fidelity(model, exact, hopped, ids[:tokens], ids[tokens:]).kl_nats


@pytest.mark.parametrize("quality", ["transparent", "high"])
def test_ten_hops_stay_within_the_bound_of_the_quality(place: Path, quality: str) -> None:
    """Every hop takes the session from the disk, and goes on over the decoded past."""
    model, tokenizer = kv.load_model("reference-lm")
    session = next(iter(read_sessions(EXAMPLES / "sessions.jsonl")))
    ids = torch.tensor(session_token_ids(session, tokenizer)[: FIRST + HOPS * STEP + AFTER])
    codec = kv.load_codec("reference-lm-tinyvae")
    kl = kl_after_hops(place, model, tokenizer, "reference-lm-tinyvae", ids, FIRST, STEP, AFTER, quality)
    assert kl < codec.promise_of(quality).kl_nats.bound


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_file(), reason="the model is not there: make model-smollm2")
@pytest.mark.parametrize("quality", ["transparent", "high", "usable"])
def test_ten_hops_of_a_real_model_stay_within_the_bound(tmp_path: Path, quality: str) -> None:
    model, tokenizer = kv.load_model(SMOLLM2)
    codec = kv.load_codec("smollm2-135m-instruct-tinyvae")
    for session in read_sessions(EXAMPLES / "real_model_sessions.jsonl"):
        ids = torch.tensor(session_token_ids(session, tokenizer)[: 256 + HOPS * 48 + 128])
        place = tmp_path / session.id
        kl = kl_after_hops(place, model, tokenizer, "smollm2-135m-instruct-tinyvae", ids, 256, 48, 128, quality)
        print(f"{quality} {session.id}: KL {kl:.4f} nats")
        assert kl < codec.promise_of(quality).kl_nats.bound
