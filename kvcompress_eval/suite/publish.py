"""Where results go beyond the report, to Weights & Biases; and how they are read again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvcompress.errors import FormatError, InputError
from kvcompress_eval.suite.report import validate


def read_result(path: Path) -> dict[str, Any]:
    """Read the result of a run.

    Args:
        path: `report.json`, or the directory that holds it.

    Raises:
        InputError: There is none, or it is not a result of this version.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = "Name the --out of an earlier `kvcompress eval run`"
        raise InputError("cannot be read", remedy, path=file) from error
    except ValueError as error:
        raise FormatError(f"is not JSON ({error})", path=file) from error
    validate(result)
    return dict(result)


def log_to_wandb(result: dict[str, Any], out: Path) -> None:
    """Log sizes and fidelity of every codec as one offline run, unless WANDB_MODE says otherwise.

    Raises:
        InputError: The package wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("the package wandb is missing", 'pip install "kvcompress[train]"') from error
    mode = os.environ.get("WANDB_MODE", "offline")
    names = ("model", "sessions", "machine", "versions", "seeds", "command", "commit")
    config = {name: result[name] for name in names}
    with wandb.init(project="kvcompress", dir=str(out), mode=mode, config=config) as run:
        table = wandb.Table(columns=["codec", "family", "size_ratio", "kl_nats", "context_lost", "top1_agreement"])
        for codec in result["codecs"]:
            if codec["failed"] is None:
                size, fidelity = codec["size"], codec["fidelity"]
                means = [fidelity[name]["mean"] for name in ("kl_nats", "context_lost", "top1_agreement")]
                table.add_data(codec["name"], codec["family"], size["size_ratio"]["mean"], *means)
                run.summary[codec["name"]] = {"size_ratio": size["size_ratio"]["mean"], "kl_nats": means[0]}
        run.log({"codecs": table})
