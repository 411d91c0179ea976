"""What a figure must carry along: code, versions, machine, seeds, model, sessions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eval.suite.bootstrap import BOOTSTRAP_SEED, estimate_mean
from eval.suite.sensitive import sensitive_positions
from eval.suite.subject import Subject

if TYPE_CHECKING:
    from eval.suite.run import SuiteSettings

PACKAGES = ("kvcompress", "torch", "transformers", "constriction", "numpy", "zstandard", "safetensors", "lm_eval")
LEAST_WORTH_NATS = 0.1


def provenance(
    model_path: Path, model: Any, subjects: list[Subject], sessions: Path, settings: SuiteSettings, command: str
) -> dict[str, Any]:
    """Return the parts of the result that say what was measured with what."""
    worth = estimate_mean([float(subject.worth_nats.mean()) for subject in subjects])
    categories = sorted({subject.session.category for subject in subjects})
    positions = torch.cat([subject.worth_nats for subject in subjects])
    snapshot = subjects[0].snapshot
    return {
        "command": command,
        "commit": commit(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
        },
        "seeds": {"bootstrap": BOOTSTRAP_SEED, "branches": 0},
        "model": {
            "name": snapshot.origin.model_name,
            "weights": str(snapshot.origin.fingerprint.weights),
            "parameters": sum(p.numel() for p in model.parameters()),
            "file_bytes": sum(path.stat().st_size for path in model_path.glob("*.safetensors")),
            "layers": len(snapshot.layers),
            "values_per_token": snapshot.values_count // max(1, snapshot.tokens),
            "dtype": snapshot.origin.dtype,
        },
        "sessions": {
            "file": sessions.name,
            "count": len(subjects),
            "tokens": settings.tokens,
            "continuation_tokens": settings.continuation_tokens,
            "categories": {name: sum(s.session.category == name for s in subjects) for name in categories},
            "context_worth_nats": worth.to_json(),
            "sensitive_share": float(sensitive_positions(positions).double().mean()),
        },
        "warning": warning(worth.mean),
    }


def warning(worth_nats: float) -> str | None:
    """Return what must be said first of a model that hardly uses its context."""
    if worth_nats >= LEAST_WORTH_NATS:
        return None
    return (
        f"The context is worth {worth_nats:.3f} nats a token to this model on these sessions, less than "
        f"{LEAST_WORTH_NATS}: it hardly looks back, so every codec looks good and these figures mean little."
    )


def package_versions() -> dict[str, str]:
    """Return the installed versions of what figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit that the working tree is at, marked where files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
