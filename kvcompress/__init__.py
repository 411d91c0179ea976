"""Learned compression of transformer KV caches: store a session, move it, continue it.

```python
import kvcompress as kv

model, tokenizer = kv.load_model("reference-lm")
kv.save_session("session.kvz", model, token_ids, quality="high")
cache = kv.load_session("session.kvz", model)
model.generate(token_ids_and_prompt, past_key_values=cache)
```
Everything is imported on first use, so that `import kvcompress` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcompress.api.encoding import Encoding, encode
    from kvcompress.api.options import EncodeOptions, PlanOptions
    from kvcompress.api.planning import SessionPlan, plan
    from kvcompress.api.session import SavedSession, load_session, next_turn, save_session
    from kvcompress.codec.directory import AutoCodec, load_codec
    from kvcompress.fit.from_sessions import FittedCodec, fit
    from kvcompress.format.container import Encoded, load, save
    from kvcompress.format.limits import memory_limit
    from kvcompress.hf import capture, load_model, restore
    from kvcompress.metrics.fidelity import fidelity
    from kvcompress.snapshot import KVSnapshot
    from kvcompress.store.keys import StoreKey
    from kvcompress.store.policy import Policy
    from kvcompress.store.session import StoredSession
    from kvcompress.store.signing import Signer
    from kvcompress.store.store import Store
    from kvcompress.store.wrapper import Session

__version__ = "0.1.0"

_HOMES = {
    "AutoCodec": "kvcompress.codec.directory",
    "EncodeOptions": "kvcompress.api.options",
    "Encoded": "kvcompress.format.container",
    "Encoding": "kvcompress.api.encoding",
    "FittedCodec": "kvcompress.fit.from_sessions",
    "KVSnapshot": "kvcompress.snapshot",
    "PlanOptions": "kvcompress.api.options",
    "Policy": "kvcompress.store.policy",
    "SavedSession": "kvcompress.api.session",
    "Session": "kvcompress.store.wrapper",
    "SessionPlan": "kvcompress.api.planning",
    "Signer": "kvcompress.store.signing",
    "Store": "kvcompress.store.store",
    "StoreKey": "kvcompress.store.keys",
    "StoredSession": "kvcompress.store.session",
    "capture": "kvcompress.hf",
    "encode": "kvcompress.api.encoding",
    "fidelity": "kvcompress.metrics.fidelity",
    "fit": "kvcompress.fit.from_sessions",
    "load": "kvcompress.format.container",
    "load_codec": "kvcompress.codec.directory",
    "load_model": "kvcompress.hf",
    "load_session": "kvcompress.api.session",
    "memory_limit": "kvcompress.format.limits",
    "next_turn": "kvcompress.api.session",
    "plan": "kvcompress.api.planning",
    "restore": "kvcompress.hf",
    "save": "kvcompress.format.container",
    "save_session": "kvcompress.api.session",
}

__all__ = [
    "AutoCodec",
    "EncodeOptions",
    "Encoded",
    "Encoding",
    "FittedCodec",
    "KVSnapshot",
    "PlanOptions",
    "Policy",
    "SavedSession",
    "Session",
    "SessionPlan",
    "Signer",
    "Store",
    "StoreKey",
    "StoredSession",
    "__version__",
    "capture",
    "encode",
    "fidelity",
    "fit",
    "load",
    "load_codec",
    "load_model",
    "load_session",
    "memory_limit",
    "next_turn",
    "plan",
    "restore",
    "save",
    "save_session",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    return globals().get(name, found)  # `fit` is a package as well, and one object whenever it is asked for


def __dir__() -> list[str]:
    """Return the public names alone."""
    return list(__all__)
