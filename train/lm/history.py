"""What a model has been through: the runs before the present one, when it was started from given weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HISTORY = "history.json"


def phases_seen(phases: list[dict[str, int]], steps: int) -> list[dict[str, int]]:
    """Return the phases as far as a run of `steps` steps went."""
    seen = []
    for phase in phases:
        part = min(phase["steps"], steps)
        steps -= part
        if part:
            seen.append(phase | {"steps": part})
    return seen


def runs_of(directory: Path) -> list[dict[str, Any]]:
    """Return every run that led to a model directory, oldest first: its phases, learning rate and seed."""
    earlier = directory / HISTORY
    runs = json.loads(earlier.read_text()) if earlier.exists() else []
    recipe = json.loads((directory / "recipe.json").read_text())
    last = json.loads((directory / "progress.jsonl").read_text().splitlines()[-1])
    own = {"phases": phases_seen(recipe["phases"], int(last["step"]))}
    return [*runs, own | {name: recipe[name] for name in ("matrix_lr", "seed")}]


def write_history(start_from: Path, out: Path) -> None:
    """Leave beside a fresh run what the weights it starts from have been through, where that is known."""
    if (start_from / "recipe.json").exists() and (start_from / "progress.jsonl").exists():
        (out / HISTORY).write_text(json.dumps(runs_of(start_from), indent=1) + "\n")


def tokens_of(runs: list[dict[str, Any]]) -> int:
    """Return the tokens seen in all runs."""
    return sum(p["steps"] * p["length_tokens"] * p["batch"] for run in runs for p in run["phases"])


def describe(runs: list[dict[str, Any]]) -> str:
    """Say the course in words, a run after another."""
    spoken = []
    for run in runs:
        course = ", then ".join(f"{p['steps']} steps of {p['batch']} x {p['length_tokens']}" for p in run["phases"])
        spoken.append(f"{course} tokens at a rate of {run['matrix_lr']:g}")
    return "; started again from those weights: ".join(spoken)
