"""Seconds back to a cache: restoring each file against prefilling the same tokens, calls taking turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import load, save
from kvcompress.metrics.timing import bring_back, in_turns, prefill
from kvcompress.rate.link import decoder_of
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.suite.rows import Row

PREFILL = "prefill"


def time_session(
    model: Any, codecs: Mapping[str, TinyVAECodec], qualities: Sequence[str], snapshot: KVSnapshot, rounds: int
) -> Row:
    """Return the median seconds of prefilling and of restoring each file of one session.

    Restoring is the whole way: open, verify, decode, recompute what the file leaves to the model, build the cache.

    Args:
        model: The model.
        codecs: By name, ready to decode.
        qualities: Quality words; those that a codec does not promise are left out.
        snapshot: The session's cache.
        rounds: Times of each call.
    """
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {PREFILL: partial(prefill, model, snapshot.token_ids)}
        for name, codec in codecs.items():
            for quality in (word for word in qualities if word in codec.promises):
                path = Path(temporary) / f"{len(calls)}.kvz"
                save(path, encode_at_quality(codec, snapshot, quality))
                calls[f"{name} {quality}"] = partial(bring_back, model, decoder_of(load(path), codec), path)
        return {"seconds": in_turns(calls, rounds), "rounds": rounds, "threads": torch.get_num_threads()}


def timing_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return medians over sessions of seconds and of each session's ratio of prefilling to restoring."""
    if not rows:
        return {}
    names = [name for name in rows[0]["seconds"] if name != PREFILL]
    table = []
    for name in names:
        codec, _, quality = name.rpartition(" ")
        restore = [row["seconds"][name] for row in rows]
        times = [row["seconds"][PREFILL] / row["seconds"][name] for row in rows]
        table.append(
            {
                "codec": codec,
                "quality": quality,
                "restore_seconds": float(np.median(restore)),
                "times_faster": float(np.median(times)),
                "least_times_faster": min(times),
            }
        )
    prefills = float(np.median([row["seconds"][PREFILL] for row in rows]))
    shared = {name: rows[0][name] for name in ("rounds", "threads", "tokens")}
    return {"sessions": len(rows), "prefill_seconds": prefills, **shared, "table": table}
