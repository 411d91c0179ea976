"""Saved, resumed, continued and saved again, ten times: within the quality's bound, and nothing is coded twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kvcompress as kv
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.hf.generation import feed
from kvcompress.metrics.fidelity import fidelity
from kvcompress.store.store import Store

HOPS, FIRST, STEP, AFTER = 10, 96, 24, 64
EXAMPLES = Path(__file__).parents[2] / "examples" / "sessions.jsonl"


@pytest.mark.parametrize("quality", ["transparent", "high"])
def test_ten_hops_stay_within_the_bound_of_the_quality(place: Path, quality: str) -> None:
    """Every hop takes the session from the disk, and goes on over the decoded past."""
    model, tokenizer = kv.load_model("reference-lm")
    codec = kv.load_codec()
    assert isinstance(codec, TinyVAECodec)
    tokens, segments = FIRST + HOPS * STEP, list[str]()
    session = next(iter(read_sessions(EXAMPLES)))
    ids = torch.tensor(session_token_ids(session, tokenizer)[: tokens + AFTER])
    with Store(place, create=True) as store:
        stored = store.session("talk", create=True)
        stored.append(kv.capture(model, ids[:FIRST]), quality=quality)
        for end in range(FIRST + STEP, tokens + 1, STEP):
            resumed = stored.resume(model)
            feed(model, resumed.cache, ids[end - STEP : end], end - STEP)
            stored.append(kv.capture(model, ids[:end], cache=resumed.cache), quality=quality)
            turns = [turn.segment for turn in stored.turns()]
            assert turns[: len(segments)] == segments
            segments = turns
    with Store(place) as again:
        assert len(segments) == len(again.session("talk").turns()) == HOPS + 1
        hopped = again.session("talk").resume(model).cache
    exact = kv.restore(kv.capture(model, ids[:tokens]), model)
    report = fidelity(model, exact, hopped, ids[:tokens], ids[tokens:])
    assert report.kl_nats < codec.promise_of(quality).kl_nats.bound
