"""torch's default data type changes nothing: neither fingerprints, nor files, nor what they decode to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from kvcompress.codec.directory import load_codec
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hf import capture, fingerprint, load_model, recompute_with, restore
from kvcompress.hf.generation import generate_from
from kvcompress.snapshot import KVSnapshot

IDS = [(17 * place * place + 3) % 900 + 20 for place in range(80)]


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def digest(snapshot: KVSnapshot) -> str:
    found = hashlib.sha256()
    for layer in snapshot.layers:
        for part in (layer.keys, layer.values):
            found.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def outcome() -> list[object]:
    model, tokenizer = load_model("reference-lm")
    snapshot = capture(model, IDS, tokenizer=tokenizer)
    found: list[object] = [fingerprint(model, tokenizer), digest(snapshot)]
    for layers in (0, 2):
        codec = load_codec("reference-lm-tinyvae", layers)
        assert isinstance(codec, TinyVAECodec)
        codec.recompute = recompute_with(model, tokenizer)
        encoded = codec.encode(snapshot, 40)
        decoded = codec.decode(encoded)
        found += [codec.fingerprint, encoded.sections, digest(decoded)]
        found.append(generate_from(model, restore(decoded, model), [5], next_position=80, max_new_tokens=4))
    return found


@pytest.fixture(scope="module")
def usual() -> list[object]:
    return outcome()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_data_type_changes_nothing(dtype: torch.dtype, usual: list[object]) -> None:
    with default(dtype):
        assert outcome() == usual


def test_the_default_device_changes_nothing(usual: list[object]) -> None:
    model, tokenizer = load_model("reference-lm")
    torch.set_default_device("meta")
    try:
        snapshot = capture(model, IDS, tokenizer=tokenizer)
        codec = load_codec("reference-lm-tinyvae")
        assert isinstance(codec, TinyVAECodec)
        encoded = codec.encode(snapshot, 40)
        decoded = codec.decode(encoded)
        cache = restore(decoded, model)
        found = [codec.fingerprint, encoded.sections, digest(decoded)]
        found.append(generate_from(model, cache, [5], next_position=80, max_new_tokens=4))
        assert [fingerprint(model, tokenizer), digest(snapshot), *found] == usual[:6]
    finally:
        torch.set_default_device(None)
