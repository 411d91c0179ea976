"""A TinyVAE file made earlier, by the bundled codec, still reads: the same symbols, the same cache within rounding.

Written by `python -m tests.format.make_golden`, after the bundled model or codec was replaced.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from kvcompress.codec.directory import load_codec
from kvcompress.codec.residual import Residual
from kvcompress.format.ans import decode_symbols
from kvcompress.format.container import load, to_bytes
from kvcompress.format.raw_snapshot import load_raw
from kvcompress.format.session import read_session
from kvcompress.hf import capture, load_model
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.snapshot import KVSnapshot
from tests.format.make_golden import GOLDEN, digest_of

TOLERANCE = 1e-4
"""Relative to the largest value of a layer; float32 sums in another order differ by less."""


def test_golden_symbols_are_identical_on_every_machine() -> None:
    codec, encoded = load_codec(), load(GOLDEN / "tinyvae.kvz")
    known = json.loads((GOLDEN / "tinyvae.json").read_text())
    token_ids, _, _ = read_session(encoded, codec.preset)
    qp, vae = encoded.settings["rate"], codec.vae(0)
    levels = vae.levels(token_ids, codec.qps(0, token_ids, qp)).numpy()
    symbols = decode_symbols(encoded.sections["latents.0"], levels, codec.bank)
    assert symbols.shape == tuple(known["shape"])
    assert digest_of(torch.from_numpy(symbols)) == known["symbols_sha256"]


def test_golden_residual_is_identical_on_every_machine() -> None:
    codec, encoded = load_codec(), load(GOLDEN / "residual.kvz")
    known = json.loads((GOLDEN / "tinyvae.json").read_text())
    channels = codec.vae(0).config.channels
    residual = Residual.from_bytes(encoded.sections["residual.0"], encoded.tokens, channels, codec.bank)
    assert digest_of(residual.symbols) == known["residual_sha256"]
    near, plain = codec.decode(encoded), codec.decode(load(GOLDEN / "tinyvae.kvz"))
    exact = capture(*_bundled_model_and_ids(near))
    errors = [
        sum(float((a.values - b.values).square().sum()) for a, b in zip(decoded.layers, exact.layers, strict=True))
        for decoded in (near, plain)
    ]
    assert errors[0] < errors[1]


def _bundled_model_and_ids(snapshot: KVSnapshot) -> tuple[Any, list[int]]:
    model, _ = load_model(find_checkpoint("reference-lm"))
    return model, snapshot.token_ids.tolist()


def test_golden_file_decodes_to_the_same_cache() -> None:
    decoded = load_codec().decode(load(GOLDEN / "tinyvae.kvz"))
    golden = load_raw(GOLDEN / "tinyvae.safetensors")
    assert torch.equal(decoded.token_ids, golden.token_ids)
    for ours, theirs in zip(decoded.layers, golden.layers, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        for mine, known in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert float((mine - known).abs().max()) <= TOLERANCE * float(known.abs().max())


def test_encoding_the_same_session_gives_a_file_of_the_same_size() -> None:
    """Not the same bytes on every machine: the analysis is float. The symbols may differ only where they tie."""
    encoded = load(GOLDEN / "tinyvae.kvz")
    model, tokenizer = load_model(find_checkpoint("reference-lm"))
    codec = load_codec()
    token_ids, _, _ = read_session(encoded, codec.preset)
    again = codec.encode(capture(model, token_ids, tokenizer=tokenizer), encoded.settings["rate"])
    assert abs(len(to_bytes(again)) - len(to_bytes(encoded))) <= 64
