"""What a figure must carry along: code, versions, machine, seeds, model, sessions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvcompress_eval.suite.bootstrap import BOOTSTRAP_SEED, estimate_mean
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.sensitive import sensitive_positions
from kvcompress_eval.suite.settings import SuiteSettings

if TYPE_CHECKING:
    from kvcompress_eval.suite.job import Job
    from kvcompress_eval.suite.run import Suite

PACKAGES = ("kvcompress", "torch", "transformers", "constriction", "numpy", "zstandard", "safetensors", "lm_eval")
LEAST_WORTH_NATS = 0.1


def provenance(model_path: Path, suite: Suite, job: Job, settings: SuiteSettings) -> dict[str, Any]:
    """Return the parts of the result that say what was measured with what."""
    near = -(-NEAR_TOKENS // settings.worth_stride)
    worth = estimate_mean([float(one[:near].mean()) for one in suite.worth])
    kinds = [one.session.category for one in suite.chosen]
    positions = torch.cat([one[:near] for one in suite.worth])
    snapshot = suite.sample
    return {
        "command": job.command,
        "commit": commit(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
            "load": load_average(),
        },
        "seeds": {"bootstrap": BOOTSTRAP_SEED, "branches": 0},
        "model": {
            "name": snapshot.origin.model_name,
            "weights": str(snapshot.origin.fingerprint.weights),
            "parameters": sum(p.numel() for p in suite.model.parameters()),
            "file_bytes": sum(path.stat().st_size for path in model_path.glob("*.safetensors")),
            "layers": len(snapshot.layers),
            "values_per_token": snapshot.values_count // max(1, snapshot.tokens),
            "dtype": snapshot.origin.dtype,
        },
        "sessions": {
            "file": job.sessions.name,
            "count": len(suite.chosen),
            "tokens": settings.tokens,
            "continuation_tokens": settings.continuation_tokens,
            "categories": {name: kinds.count(name) for name in sorted(set(kinds))},
            "context_worth_nats": worth.to_json(),
            "sensitive_share": float(sensitive_positions(positions).double().mean()),
            "worth_stride": settings.worth_stride,
        },
        "warning": warning(worth.mean),
    }


def load_average() -> float | None:
    """Return how many processes wanted a processor in the last minutes, this one among them; None where unknown.

    Seconds measured beside other work are too long, and the reader has to know.
    """
    return round(os.getloadavg()[2], 2) if hasattr(os, "getloadavg") else None


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
    if not (root / "pyproject.toml").is_file():
        return None  # installed: the repository around it is another's
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
