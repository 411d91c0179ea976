"""A model's weights as its checkpoint stores them, for models that were loaded in a data type that cannot hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM

from kvcompress.hf.quiet import silence
from kvcompress.hf.types import CausalLM

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 1 << 26


def load_stored(model: CausalLM) -> Any | None:
    """Load a model's checkpoint again in the data type it is stored in, on the CPU.

    Returns:
        The model, or None where that would tell nothing new: no checkpoint is at hand, the loaded data type holds its
        numbers exactly, or the model's weights are not those of the checkpoint.
    """
    where = _directory(str(getattr(model.config, "name_or_path", "") or ""))
    stored = set() if where is None else set(_stored_dtypes(where))
    if not stored or model.dtype not in FLOATS.values() or stored <= {model.dtype} or model.dtype == torch.float32:
        return None
    wanted = stored.pop() if len(stored) == 1 else torch.float32
    try:
        with silence():
            auto: Any = AutoModelForCausalLM
            found = auto.from_pretrained(where, dtype=wanted, local_files_only=True, trust_remote_code=False).eval()
    except Exception:  # whatever is wrong with the checkpoint, the weights in memory can still be hashed
        return None
    return found if _is_rounding(model.state_dict(), found.state_dict()) else None


def _is_rounding(loaded: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Return whether weights in memory are stored ones in another data type."""
    return loaded.keys() == stored.keys() and all(
        not loaded[name].is_meta and torch.equal(loaded[name].cpu(), stored[name].to(loaded[name].dtype))
        for name in loaded
    )


def _directory(name: str) -> Path | None:
    """Return where a model was loaded from, a directory or the local cache of the Hub; None where it is not known."""
    if not name:
        return None
    if (Path(name) / "config.json").is_file():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except Exception:  # a name that is no Hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _stored_dtypes(where: Path) -> Iterator[torch.dtype]:
    """Yield the floating data types of a checkpoint's tensors, from the headers of its files."""
    for path in sorted(where.glob("*.safetensors")):
        try:
            with path.open("rb") as handle:
                size = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(min(size, MAX_HEADER_BYTES)))
            kinds = {str(entry.get("dtype")) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, AttributeError, RecursionError):
            return
        yield from (FLOATS[kind] for kind in kinds if kind in FLOATS)
