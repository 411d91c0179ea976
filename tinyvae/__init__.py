"""The conditional KV codec on tensors and integers. No files, no bytes, no transformers."""

from tinyvae.config import Context, TinyVAEConfig
from tinyvae.model import TinyVAE

__all__ = ["Context", "TinyVAE", "TinyVAEConfig"]
