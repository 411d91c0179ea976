"""`kvcompress doctor`: check this installation, and whether a model is supported."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from kvcompress.cli.console import JsonOption, show
from kvcompress.cli.waiting import waiting

CORE = ("torch", "transformers", "safetensors", "numpy", "constriction", "einops", "zstandard", "huggingface-hub")
EXTRAS = {
    "report": ("jinja2", "matplotlib"),
    "gguf": ("gguf",),
    "train": ("lightning", "datasets", "pyyaml"),
    "eval": ("lm_eval", "jinja2", "matplotlib"),
}


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            help="Also load this model and check whether its sessions can be stored: a bundled name, a directory, "
            "a GGUF file or a Hub id."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print versions, threads, installed codecs, and what is missing. Exit status 1 if something is broken."""
    found: dict[str, Any] = {"python": platform.python_version()} | {name: _version(name) for name in CORE}
    found |= {f"extra {name}": _extra(parts) for name, parts in EXTRAS.items()}
    found |= _machine() | {"codecs": _codecs()}
    broken = [name for name in CORE if found[name] == "missing"]
    if model is not None:
        with waiting("doctor", "loading the model"):
            supported, told = _model(model)
        found["model"] = told
        broken += [] if supported else ["model"]
    show(found | ({"broken": broken} if as_json else {}), as_json=as_json)
    if broken:
        sys.stderr.write(f"error: not usable: {', '.join(broken)}.\n")
        raise typer.Exit(1)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _extra(parts: tuple[str, ...]) -> str:
    absent = [part for part in parts if _version(part) == "missing"]
    return f"without {', '.join(absent)}" if absent else "installed"


def _machine() -> dict[str, Any]:
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {"threads": torch.get_num_threads(), "devices": ", ".join(devices)}


def _codecs() -> str:
    """Name the codecs at hand; one that is damaged says so."""
    from kvcompress.codec.facts import read_facts
    from kvcompress.errors import KVCompressError
    from kvcompress.hub.bundled import require_intact
    from kvcompress.hub.places import all_codecs

    told = []
    for found in all_codecs():
        try:
            read_facts(found.directory)
            require_intact(found.directory)
            told.append(found.name)
        except KVCompressError as error:
            told.append(f"{found.name} (damaged: {error.what})")
    return ", ".join(told) or "none"


def _model(name: str) -> tuple[bool, str]:
    """Return whether a model's sessions can be stored, and in words why, or with which codec."""
    from kvcompress.codec.at_hand import codec_for
    from kvcompress.errors import CheckpointError, KVCompressError
    from kvcompress.hf import capture, load_model

    try:
        model, tokenizer = load_model(name)
        snapshot = capture(model, [0], tokenizer=tokenizer)
    except CheckpointError:
        raise
    except KVCompressError as error:
        return False, f"not supported: {error}"
    parts = snapshot.origin.fingerprint
    digests = {"config": parts.config, "weights": parts.weights, "rope": parts.rope, "tokenizer": parts.tokenizer}
    try:
        return True, f"supported, {len(snapshot.layers)} layers, codec {codec_for(digests).name}"
    except KVCompressError as error:
        return True, f"supported, {len(snapshot.layers)} layers; lossless and int8 only: {error}"
