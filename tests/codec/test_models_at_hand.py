"""Whatever the model: what a fit promises, sessions that fitted and calibrated nothing confirm.

Small models of several kinds are always there. Real ones are tried where they lie in `models/`, which git ignores:
`make model-smollm2` puts one there, and any directory or GGUF file may be put beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from kvcompress.codec.directory import load_tinyvae
from kvcompress.codec.promise import Promise
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import plain_text_ids, read_sessions
from kvcompress.fit.calibrate import calibrate, trials_from_sessions
from kvcompress.fit.fitter import fit_codec
from kvcompress.fit.run import FitSource, fit_checkpoint
from kvcompress.fit.settings import FitSettings
from kvcompress.format.container import to_bytes
from kvcompress.hf import capture, fingerprint, load_model
from kvcompress.metrics.fidelity import TIERS
from tests.codec.test_calibrate import confirm
from tests.conftest import ROOT
from tests.hf.families import model_of

MODELS = ROOT / "models"
WINDOW_TOKENS = 256
FITTED, FRESH = 90, 12


def at_hand() -> list[Path]:
    found = sorted(MODELS.iterdir()) if MODELS.is_dir() else []
    return [path for path in found if (path / "config.json").is_file() or any(path.glob("*.gguf"))]


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen2"])
def test_a_fit_promises_only_what_fresh_sessions_confirm(family: str) -> None:
    model = model_of(family)
    generator = torch.Generator().manual_seed(1)
    sessions = [torch.randint(0, model.config.vocab_size, (128,), generator=generator) for _ in range(50)]
    settings = FitSettings(fisher_sessions=4, continuation_tokens=32, calibration_share=0.5)
    codec, kept = fit_codec(model, None, sessions[:38], settings, lambda stage, done, total: None)
    promises = calibrate(model, codec, trials_from_sessions(model, kept))
    assert set(promises) >= {tier.name for tier in TIERS}
    confirm(model, codec, promises, sessions[38:])


def windows(tokenizer: Any, file: Path) -> Iterator[tuple[str, str]]:
    """Texts of recorded sessions cut into windows of tokens, with the session each comes from."""
    for session in read_sessions(file):
        text = session.text or "\n".join(turn["content"] for turn in session.messages)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - WINDOW_TOKENS + 1, WINDOW_TOKENS):
            yield session.id, tokenizer.decode(ids[start : start + WINDOW_TOKENS])


@pytest.mark.slow
@pytest.mark.parametrize("directory", at_hand() or [None], ids=lambda path: "none" if path is None else path.name)
def test_a_fit_to_a_real_model_promises_only_what_fresh_sessions_confirm(
    directory: Path | None, sessions_file: Path, tmp_path: Path
) -> None:
    if directory is None:
        pytest.skip("no model lies in models/: make model-smollm2 puts one there")
    model, tokenizer = load_model(str(directory))
    texts = list(windows(tokenizer, sessions_file))
    fresh = texts[-FRESH:]
    fitted = [text for name, text in texts[:-FRESH] if name != fresh[0][0]][:FITTED]
    rows = [json.dumps({"id": f"w{number:03}", "text": text}) + "\n" for number, text in enumerate(fitted)]
    (tmp_path / "sessions.jsonl").write_text("".join(rows), encoding="utf-8")
    settings = FitSettings(fisher_sessions=16, continuation_tokens=WINDOW_TOKENS // 2, calibration_share=0.4)
    source = FitSource(str(directory), tmp_path / "sessions.jsonl", tokens=WINDOW_TOKENS)
    summary = fit_checkpoint(source, tmp_path / "codec", settings, lambda stage, done, total: None)
    codec = load_tinyvae(tmp_path / "codec")
    print(json.dumps(summary, indent=1), codec.fitted["sink_share"], codec.fitted["spectrum"])
    codec.model_fingerprint.require_match(fingerprint(model, tokenizer))
    ids = [torch.tensor(plain_text_ids(tokenizer, text)[:WINDOW_TOKENS]) for _, text in fresh]  # as they are recorded
    confirm(model, codec, codec.promises, ids)
    assert set(codec.promises) >= {tier.name for tier in TIERS}
    _sizes(codec, model, tokenizer, ids, codec.promises)


def _sizes(codec: TinyVAECodec, model: Any, tokenizer: Any, ids: list[torch.Tensor], found: dict[str, Promise]) -> None:
    """Coarser qualities weigh less in whole files. What is printed is no figure to quote: so few windows fitted it."""
    snapshots = [capture(model, one[: WINDOW_TOKENS // 2], tokenizer=tokenizer) for one in ids[:4]]
    ratios = list[float]()
    raw = fmean(sum(part.numel() * 2 for layer in kv.layers for part in (layer.keys, layer.values)) for kv in snapshots)
    for tier in TIERS:
        ratios.append(raw / fmean(len(to_bytes(encode_at_quality(codec, kv, tier.name))) for kv in snapshots))
        print(tier.name, found[tier.name].setting.words(), f"{ratios[-1]:.1f}x of 16 bits")
    assert ratios == sorted(ratios)
