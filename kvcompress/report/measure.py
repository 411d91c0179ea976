"""Measure one stored file: decode it, resume from it, compare with the exact cache, time restoring and prefilling."""

from __future__ import annotations

import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress import __version__
from kvcompress.codec.promise import applying
from kvcompress.codec.protocol import Codec
from kvcompress.codec.registry import codec_of
from kvcompress.codec.settings import TinyVAESettings, settings_of
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.data.sessions import Session
from kvcompress.errors import InputError
from kvcompress.format.container import Encoded, load
from kvcompress.hf import capture, recompute_with, restore
from kvcompress.hf.generation import context_limit, generate_from, resume_start
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.metrics.fidelity import MIN_CONTINUATION_TOKENS, fidelity
from kvcompress.metrics.recall import Question, count_exact, questions
from kvcompress.metrics.timing import bring_back, median_seconds, prefill
from kvcompress.prune.constraints import drop
from kvcompress.prune.table import stored_offsets, table_of
from kvcompress.prune.tiers import Tier
from kvcompress.snapshot import KVSnapshot

TARGET_SIZE_RATIO = 10.0
MOST_CONTINUATION_TOKENS = 256
SHOWN_TOKENS = 48


def find_session_of(
    model: CausalLM, tokenizer: Tokenizer, path: Path, session_id: str | None, token_ids: Tensor
) -> tuple[Session, Tensor]:
    """Return the session that a file was recorded from, and all of the session's tokens.

    Raises:
        InputError: No session of the file begins with these tokens.
    """
    for session, ids in tokenized_sessions(model, tokenizer, path):
        if session_id in (None, session.id) and torch.equal(ids[: len(token_ids)], token_ids):
            return session, ids
    wanted = "no session" if session_id is None else f"session {session_id!r} does not exist or no longer"
    raise InputError(
        f"{wanted} begins with the file's {len(token_ids)} tokens", "Name the file it was recorded from", path=path
    )


def continuation_of(model: CausalLM, exact: KVSnapshot, ids: Tensor) -> tuple[Tensor, str]:
    """Return what follows the stored tokens and where it comes from: the session, or the model itself."""
    rest = ids[exact.tokens : exact.tokens + MOST_CONTINUATION_TOKENS]
    if len(rest) >= MIN_CONTINUATION_TOKENS:
        return rest, "session"
    limit = context_limit(model)
    room = MOST_CONTINUATION_TOKENS if limit is None else min(MOST_CONTINUATION_TOKENS, limit - exact.tokens)
    if room < MIN_CONTINUATION_TOKENS:
        remedy = "Record fewer tokens with `kvcompress record --tokens N`"
        raise InputError(f"after {exact.tokens} tokens the model's context leaves no room to measure in", remedy)
    cache = restore(exact, model)
    pending, position = resume_start(cache, exact.token_ids)
    new_ids = generate_from(model, cache, pending, next_position=position, max_new_tokens=room, temperature=1.0, seed=0)
    return torch.tensor(new_ids), "sampled by the model from the exact cache"


def greedy_text(model: CausalLM, tokenizer: Tokenizer, snapshot: KVSnapshot, question: Question | None) -> str:
    """Return what the model says next, greedily, from a snapshot."""
    cache = restore(snapshot, model)
    pending, position = resume_start(cache, snapshot.token_ids, question.ids if question else ())
    stop = [tokenizer.eos_token_id] if question else []
    new_ids = generate_from(model, cache, pending, next_position=position, max_new_tokens=SHOWN_TOKENS, stop_ids=stop)
    return str(tokenizer.decode(new_ids))


def time_both_ways(model: CausalLM, path: Path, codec: Any, token_ids: Tensor) -> dict[str, float]:
    """Return seconds to restore (open, verify, decode, build the cache) and to prefill the same tokens again.

    Model and codec are in memory in both cases.
    """

    return {
        "restore_seconds": median_seconds(partial(bring_back, model, codec, path)),
        "prefill_seconds": median_seconds(partial(prefill, model, token_ids)),
    }


def encode_seconds(codec: Any, encoded: Encoded, exact: KVSnapshot, tiers: Tensor) -> float:
    """Return the median seconds of coding the snapshot again as it was, by its tokens' tiers; the plan is given."""
    held = drop(exact, tiers > int(Tier.DROPPED)) if exact.tokens else exact
    stated = settings_of(encoded)
    if not isinstance(stated, TinyVAESettings):
        return median_seconds(lambda: codec.encode(held))
    given = {"offsets": stored_offsets(encoded), "residual_qp": stated.residual_qp}
    return median_seconds(lambda: codec.encode(held, stated.qp, **given))


def measure_file(
    model: CausalLM,
    tokenizer: Tokenizer,
    sessions: Path,
    session_id: str | None,
    path: Path,
    codec_name: str | None,
) -> dict[str, Any]:
    """Return the report of one file: sizes from disk, fidelity, recall, times, texts, and what pictures need."""
    encoded = load(path)
    codec: Codec = codec_of(encoded, codec_name, recompute_with(model, tokenizer))
    stated = settings_of(encoded)
    if isinstance(codec, TinyVAECodec) and isinstance(stated, TinyVAESettings) and stated.other_weights is not None:
        from kvcompress.fit.adopt import adopt

        codec = adopt(codec, model, tokenizer)  # encoding is timed as well
    decoded = codec.decode(encoded)
    token_ids = decoded.token_ids
    session, ids = find_session_of(model, tokenizer, sessions, session_id, token_ids)
    exact = capture(model, token_ids, tokenizer=tokenizer)
    restore(decoded, model, tokenizer=tokenizer)  # refuses a mismatch before anything is measured
    continuation, source = continuation_of(model, exact, ids)
    measured = fidelity(model, restore(exact, model), restore(decoded, model), token_ids, continuation)
    asked = questions(session, tokenizer, token_ids.tolist())
    recall: dict[str, Any] = {
        "asked": len(asked),
        "exact": count_exact(model, restore(decoded, model), tokenizer, asked, token_ids),
        "exact_uncompressed": count_exact(model, restore(exact, model), tokenizer, asked, token_ids),
        "distances_tokens": [question.distance_tokens for question in asked],
    }
    timing = time_both_ways(model, path, codec, token_ids)
    table = table_of(encoded, codec, decoded)
    timing["encode_seconds"] = encode_seconds(codec, encoded, exact, table.tiers)
    question = asked[0] if asked else None
    fidelity_json = measured.to_json()
    result = _sizes(encoded, path) | fidelity_json | timing
    return result | {
        "title": f"{session.id}: {len(token_ids)} tokens stored in {result['file_bytes']:,} bytes",
        "command": " ".join(["kvcompress", *sys.argv[1:]]),
        "versions": {"kvcompress": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "model": {"name": encoded.model_name, "weights": encoded.model.get("weights")},
        "file": _sizes(encoded, path)
        | {"name": path.name, "sections": {name: len(data) for name, data in encoded.sections.items()}},
        "fidelity": fidelity_json,
        "promise": promise_kept(codec, encoded),
        "timing": timing,
        "recall": recall["exact"] / len(asked) if asked else None,
        "questions": recall,
        "continuation": source,
        "resumed_text": greedy_text(model, tokenizer, decoded, question),
        "uninterrupted_text": greedy_text(model, tokenizer, exact, question),
        "verdict": verdict(result["size_ratio"], measured.tier),
        "per_token_kl_nats": list(measured.per_token_kl_nats),
        "per_token_bits": table.bits if any(table.bits) else [],
        "tokens_tier": [Tier(tier).word for tier in table.tiers.tolist()],
        "tokens_text": [tokenizer.decode([int(token)]) for token in token_ids],
    }


def promise_kept(codec: Any, encoded: Encoded) -> dict[str, Any]:
    """Return what the codec promises of a file's quality, with the evidence; empty where it promises nothing."""
    promise = applying(getattr(codec, "promises", {}), settings_of(encoded))
    return {} if promise is None else {"quality": promise.quality, **promise.to_json()}


def _sizes(encoded: Encoded, path: Path) -> dict[str, Any]:
    """Return sizes: raw at 2 bytes a value, the file as the file system says."""
    file_bytes = path.stat().st_size
    return {
        "tokens": encoded.tokens,
        "raw_bytes": encoded.raw_bytes,
        "file_bytes": file_bytes,
        "size_ratio": encoded.raw_bytes / file_bytes,
    }


def verdict(size_ratio: float, tier: str | None) -> str:
    """Say in one line how a file stands against the target."""
    met = "meets" if size_ratio >= TARGET_SIZE_RATIO and tier else "misses"
    return f"{size_ratio:.1f}x smaller, {tier or 'below usable'}: {met} the target of {TARGET_SIZE_RATIO:.0f}x"
