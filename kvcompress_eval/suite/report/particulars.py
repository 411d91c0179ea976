"""What identifies a run: program, machine, model, sessions, as pairs of name and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import spell, with_error
from kvcompress_eval.suite.report.facts import Result


def particulars(result: Result) -> list[tuple[str, str]]:
    """Return name and text of everything that identifies the run; what is null is left out."""
    model, sessions = result["model"], result["sessions"]
    pairs: list[tuple[str, Any]] = [
        ("commit", result["commit"]),
        ("started", result["started"]),
        ("took, since it was resumed" if resumed(result) else "took", _duration(result["wall_seconds"])),
        ("kind of run", "quick" if result["quick"] else "full"),
        ("model", model["name"]),
        ("model weights", model["weights"]),
        ("model parameters", spell(model["parameters"], "count")),
        ("model file", spell(model["file_bytes"], "bytes")),
        ("model layers", spell(model["layers"], "count")),
        ("values a token", spell(model["values_per_token"], "count")),
        ("model dtype", model["dtype"]),
        ("sessions file", sessions["file"]),
        ("sessions", spell(sessions["count"], "count")),
        ("tokens stored", spell(sessions["tokens"], "count")),
        ("tokens continued", spell(sessions["continuation_tokens"], "count")),
        ("context worth", f"{with_error(sessions['context_worth_nats'], 'worth')} nats"),
        ("context worth measured", _every(sessions.get("worth_stride"))),
        ("positions that need the context", spell(sessions["sensitive_share"], "share")),
        ("categories", ", ".join(f"{name} {count:,}" for name, count in sessions["categories"].items())),
        *_group("machine", result["machine"]),
        *_group("version of", result["versions"]),
        *_group("seed of", result["seeds"]),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _group(title: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{title} {name.replace('_', ' ')}", value) for name, value in values.items()]


def resumed(result: Result) -> bool:
    """Tell whether earlier parts of the run left rows: how long these took is not known."""
    return "--resume" in result["command"].split()


def _every(stride: int | None) -> str:
    return "" if stride is None else "at every position" if stride == 1 else f"at every {stride}th position"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else spell(seconds, "seconds")
