"""Make a codec checkpoint from a model and a session file: fit, measure the tiers, write the card."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvcompress.calibrate import MARGIN, calibrate_tiers
from kvcompress.codec import TinyVAECodec
from kvcompress.fit import FitSettings, fit_codec
from kvcompress.harvest import tokenized_sessions
from kvcompress.hf import load_model
from kvcompress.zoo import find_checkpoint

SHORTEST_SESSION_TOKENS = 16


def fit_checkpoint(
    model: str, sessions: Path, output: Path, settings: FitSettings, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Fit, calibrate and save; `output` appears whole or not at all.

    Returns:
        A summary: tokens, seconds, size of the checkpoint, rate index of each tier.
    """
    start = time.perf_counter()
    language_model, tokenizer = load_model(find_checkpoint(model))
    rows = [
        ids for _, ids in tokenized_sessions(language_model, tokenizer, sessions) if len(ids) >= SHORTEST_SESSION_TOKENS
    ]
    codec, kept_out = fit_codec(language_model, tokenizer, rows, settings, progress)
    codec.tiers = calibrate_tiers(language_model, codec, kept_out, tokenizer=tokenizer, progress=progress)
    save_codec(codec, output)
    weights_bytes = (output / "model.safetensors").stat().st_size
    return {
        "output": str(output),
        "tokens": codec.fitted["tokens"],
        "fit_seconds": time.perf_counter() - start,
        "file_bytes": weights_bytes,
        "tiers": codec.tiers,
        "fingerprint": codec.fingerprint,
    }


def save_codec(codec: TinyVAECodec, output: Path) -> None:
    """Write config, weights and card into a sibling directory, then put it in place of `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".kvcompress-") as temporary:
        fresh = Path(temporary) / "codec"
        codec.save_pretrained(fresh, config=codec.config_json())
        (fresh / "README.md").write_text(card(codec), encoding="utf-8")
        if output.exists():
            output.rename(Path(temporary) / "old")
        shutil.move(fresh, output)


def card(codec: TinyVAECodec) -> str:
    """Return the model card."""
    fitted = codec.fitted
    tiers = "\n".join(f"| {name} | {rate} |" for name, rate in codec.tiers.items())
    return f"""---
library_name: kvcompress
tags: [kv-cache-compression]
license: apache-2.0
---
# TinyVAE codec

Conditional transform codec of one model's KV caches, fitted in closed form from {fitted["sessions"]} sessions
({fitted["tokens"]:,} tokens); levels, tables and quality tiers come from {fitted["calibration_sessions"]} further
sessions.

| quality | rate index |
| --- | --- |
{tiers}

Each tier is the coarsest rate whose mean KL, context lost and top-1 agreement, measured after decode and resume on the
further sessions, used at most {MARGIN:.0%} of the tier's bounds.

Model fingerprint: `{codec.model_fingerprint.weights}` (weights). Codec fingerprint: `{codec.fingerprint}`.

Settings: `{json.dumps(fitted["settings"])}`

Use: `kvcompress encode RAW.safetensors -o FILE.kvz --codec DIR`
"""
