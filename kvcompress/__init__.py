"""Learned compression of transformer KV caches: encode a session, decode it, resume.

Everything is imported on first use, so that `import kvcompress` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcompress.codec.directory import load_codec
    from kvcompress.format.container import load, save
    from kvcompress.hf import capture, load_model, restore
    from kvcompress.metrics.fidelity import fidelity
    from kvcompress.snapshot import KVSnapshot

__version__ = "0.1.0"

_HOMES = {
    "capture": "kvcompress.hf",
    "restore": "kvcompress.hf",
    "load_model": "kvcompress.hf",
    "load_codec": "kvcompress.codec.directory",
    "save": "kvcompress.format.container",
    "load": "kvcompress.format.container",
    "fidelity": "kvcompress.metrics.fidelity",
    "KVSnapshot": "kvcompress.snapshot",
}

__all__ = ["KVSnapshot", "__version__", "capture", "fidelity", "load", "load_codec", "load_model", "restore", "save"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
