"""A small run of the real-model report on the bundled model: two qualities of two codecs, sessions of 160 tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from kvcompress.codec.promise import Loss, Promise, Setting
from kvcompress.data.harvest import write_shards
from kvcompress.data.shards import HarvestSettings
from kvcompress.hf import load_model
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL, find_checkpoint
from kvcompress_eval.real_model.run import Job, RealModelSettings

SETTINGS = RealModelSettings(
    tokens=160,
    continuation_tokens=192,
    count=3,
    other_count=1,
    kvtc_sessions=2,
    kvtc_fit_sessions=4,
    timed_sessions=1,
    rounds=1,
)
QPS = {"transparent": 58, "high": 30}
FIT_FACTS = {"fit_seconds": 1234.5, "peak_bytes": 2_100_000_000, "promises": {"high": "latents"}}


def job(root: Path, out: str = "report") -> Job:
    """Return a run over what `build` wrote."""
    facts, codec = (root / "fit.json",), str(root / "codec")
    files = root / "test.jsonl", root / "other.jsonl", root / "shards"
    return Job(DEFAULT_MODEL, codec, (), *files, facts, root / out, "python -m eval real-model --example")


def build(root: Path, sessions_file: Path) -> Path:
    """Write a codec for m = 0 and 1 that promises two qualities, sessions, a harvest of others, facts of a fit."""
    source = find_checkpoint(DEFAULT_CODEC)
    for part in ("", "recompute-1"):
        target = root / "codec" / part
        target.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(source / part / name, target / name)
        _promise(target / "config.json")
    lines = sessions_file.read_text(encoding="utf-8").splitlines()
    for name, chosen in (("test", lines[:3]), ("other", lines[3:5]), ("fit", lines[8:18])):
        (root / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")
    (root / "fit.json").write_text(json.dumps(FIT_FACTS), encoding="utf-8")
    torch.set_num_threads(1)
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    cut = HarvestSettings(tokens=300, continuation_tokens=64, gradient_sessions=1)
    write_shards(model, tokenizer, root / "fit.jsonl", root / "shards", lambda *_: None, settings=cut)
    return root


def _promise(config: Path) -> None:
    """Let a codec promise its QPs, on evidence that is invented; sessions unlike any are not looked for."""
    data = json.loads(config.read_text(encoding="utf-8"))
    nothing = Loss(1.0, 0.0, 0)
    data["promises"] = {
        word: Promise(word, Setting("latents", qp), 19, 1024, 256, nothing, nothing, nothing).to_json()
        for word, qp in QPS.items()
    }
    data["fitted"] = {name: value for name, value in data["fitted"].items() if name != "known"}
    config.write_text(json.dumps(data), encoding="utf-8")
