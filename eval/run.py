"""`python -m eval run`: `kvcompress eval run` that knows where the makefile puts what belongs to a model."""

from __future__ import annotations

from functools import wraps
from typing import Any

from eval.models import known_model
from kvcompress.hub.bundled import DEFAULT_MODEL
from kvcompress_eval.suite.command import run_command as run_for_users


@wraps(run_for_users)
def run_command(*, model: str = DEFAULT_MODEL, **given: Any) -> None:
    """Let a model's short name, or its directory, stand for its codec, its sessions and its shards too."""
    known = known_model(model)
    if known is not None:
        model = known.model
        given["codec_dir"] = given.get("codec_dir") or known.codec
        given["sessions"] = given.get("sessions") or known.sessions
        if known.shards is not None and known.shards.is_dir() and not given.get("calibration"):
            given["shards"] = given.get("shards") or known.shards
    run_for_users(model=model, **given)
