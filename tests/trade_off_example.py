"""A directory with everything that the storage-compute trade-off needs, made by the commands that users type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvcompress.codec.directory import load_tinyvae
from kvcompress.hub.bundled import find_checkpoint
from tests.cli.test_commands import run
from tests.codec.conftest import promised

TOKENS = 150
FIT = ("--rank", 12, "--prior-rank", 8, "--prior-taps", 2, "--prior-width", 24)


def build_trade_off(root: Path, sessions_file: Path) -> Path:
    """Write a small model with the bundled tokenizer, its sessions, codecs for m = 0 and 1, a raw snapshot, a file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "model")  # the same weights in any precision
    for file in find_checkpoint("reference-lm").glob("*token*"):
        shutil.copy(file, root / "model")
    shutil.copy(find_checkpoint("reference-lm") / "chat_template.jinja", root / "model")
    rows = [json.loads(line) for line in sessions_file.read_text().splitlines()[:8]]
    short = [{"id": row["id"], "messages": row["messages"][:12]} for row in rows]
    (root / "sessions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    for layers in (0, 1):
        trade_off = ("--recompute-layers", layers) if layers else ()
        options = ("--model", root / "model", "--sessions", root / "sessions.jsonl", *FIT)
        run("fit", *options, *trade_off, "-o", root / "codec")
    for layers in (0, 1):
        _promise(root / "codec" / ("recompute-1" if layers else ""))
    options = ("--model", root / "model", "--session", root / "sessions.jsonl", "--tokens", TOKENS)
    run("record", *options, "-o", root / "raw.safetensors")
    both = ("--model", root / "model", "--codec", root / "codec")
    run("encode", root / "raw.safetensors", "-o", root / "one.kvz", "--recompute-layers", 1, *both)
    return root


def _promise(directory: Path) -> None:
    """Give a codec promises: eight sessions are too few to verify any, and this model's context is worth nothing."""
    codec = load_tinyvae(directory)
    assert not codec.promises
    codec.promises = promised({"transparent": 60, "high": 40, "usable": 20})
    (directory / "config.json").write_text(json.dumps(codec.config_json()))
