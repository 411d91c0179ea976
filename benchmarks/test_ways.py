"""Seconds of each part of a way to a file and back, on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kvcompress as kv
from kvcompress.data.sessions import find_session, session_token_ids
from kvcompress.metrics.timing import prefill

EXAMPLES = Path(__file__).parents[1] / "examples" / "sessions.jsonl"
TOKENS = 1024


@pytest.fixture(scope="module")
def model() -> Any:
    return kv.load_model("reference-lm")[0]


@pytest.fixture(scope="module")
def codec() -> Any:
    return kv.load_codec("reference-lm-tinyvae", 0)


@pytest.fixture(scope="module")
def snapshot(model: Any) -> kv.KVSnapshot:
    tokenizer = kv.load_model("reference-lm")[1]
    ids = session_token_ids(find_session(EXAMPLES, None), tokenizer)[:TOKENS]
    return kv.capture(model, ids)


@pytest.mark.parametrize("quality", ["transparent", "high", "usable"])
def test_encode(benchmark: Any, codec: Any, snapshot: kv.KVSnapshot, quality: str) -> None:
    benchmark(codec.encode, snapshot, quality=quality)


@pytest.mark.parametrize("quality", ["transparent", "high", "usable"])
def test_decode(benchmark: Any, codec: Any, snapshot: kv.KVSnapshot, quality: str) -> None:
    encoded = codec.encode(snapshot, quality=quality)
    benchmark(codec.decode, encoded)


def test_restore(benchmark: Any, model: Any, snapshot: kv.KVSnapshot) -> None:
    benchmark(kv.restore, snapshot, model)


def test_prefill(benchmark: Any, model: Any, snapshot: kv.KVSnapshot) -> None:
    with torch.inference_mode():
        benchmark(prefill, model, snapshot.token_ids)
