"""Restoring a session against prefilling it again: paired, in one process, medians."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from kvcompress.container import load, save
from kvcompress.errors import InputError
from kvcompress.harvest import tokenized_sessions
from kvcompress.hf import capture, load_model, restore
from kvcompress.measure import median_seconds
from kvcompress.plan import encode_at_quality
from kvcompress.zoo import DEFAULT_MODEL, find_checkpoint, load_codec

SESSIONS = Path("examples/sessions.jsonl")


def long_session(model: object, tokenizer: object, tokens: int) -> torch.Tensor:
    """Return `tokens` token ids of example sessions, one after another."""
    ids = torch.cat([ids for _, ids in tokenized_sessions(model, tokenizer, SESSIONS)])
    if len(ids) < tokens:
        raise InputError(f"the example sessions hold only {len(ids)} tokens")
    return ids[:tokens]


def bench(tokens: int, threads: int, out: Path) -> None:
    """Print and keep seconds of every step, and the floor: the matrix products of the synthesis alone."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
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
        vae, rate = codec.vae(0), int(encoded.settings["rate"])
        width = vae.config.prior_width + vae.active_rank(codec.rates(0, snapshot.token_ids, rate))
        left, right = torch.randn(tokens, width), torch.randn(width, vae.config.channels)
        result["seconds"] = {
            "encode": median_seconds(lambda: codec.encode(snapshot, rate)),
            "open": median_seconds(lambda: load(path)),
            "decode": median_seconds(lambda: codec.decode(encoded)),
            "build_cache": median_seconds(lambda: restore(decoded, model, copy=False)),
            "restore": median_seconds(lambda: restore(codec.decode(load(path)), model, copy=False)),
            "prefill": median_seconds(lambda: model(ids[None], use_cache=True, logits_to_keep=1)),
            "floor_matrix_products": median_seconds(lambda: left @ right),
        }
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    result["prefill_over_restore"] = seconds["prefill"] / seconds["restore"]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{tokens} tokens, {threads} threads, transparent, medians of 5")
    for name, value in seconds.items():
        print(f"  {name.replace('_', ' '):<22} {value * 1000:8.1f} ms")
    print(f"restoring is {result['prefill_over_restore']:.1f} times faster than prefilling again")
