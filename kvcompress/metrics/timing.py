"""Wall time: medians of repeated calls, calls in turns, restoring against prefilling."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kvcompress.format.container import load
from kvcompress.hf.families import new_cache
from kvcompress.hf.forward import run
from kvcompress.hf.restore import restore
from kvcompress.hf.types import CausalLM


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median wall time of a call after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return median seconds of each call; all take turns after a warm-up, so that a busy machine is fair to them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def bring_back(model: CausalLM, codec: Any, path: Path) -> None:
    """Go the whole way from a file to a cache: open, verify, decode, build."""
    restore(codec.decode(load(path)), model, copy=False)


@torch.inference_mode()
def prefill(model: CausalLM, token_ids: Tensor) -> None:
    """Let the model read tokens [N] again."""
    run(model, token_ids[None], new_cache(model), last_only=True)
