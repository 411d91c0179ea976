"""The bridge to transformers, and the only package that imports it: models and caches to snapshots and back.

`capture`, `restore` and `fingerprint` are functions here although files of these names exist: all are bound when the
room is entered, so the submodules can never shadow them.
"""

from kvcompress.hf.capture import capture
from kvcompress.hf.fingerprint import fingerprint
from kvcompress.hf.loading import load_model
from kvcompress.hf.partial_prefill import first_layers, recompute_with
from kvcompress.hf.restore import restore
from kvcompress.hf.rope import RopeAdapter, rope_from_config

__all__ = [
    "RopeAdapter",
    "capture",
    "fingerprint",
    "first_layers",
    "load_model",
    "recompute_with",
    "restore",
    "rope_from_config",
]
