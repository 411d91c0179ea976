"""Tensors and integers of the conditional KV codec. No files, no bytes, no transformers."""

from tinyvae.model import Context, TinyVAE, TinyVAEConfig

__all__ = ["Context", "TinyVAE", "TinyVAEConfig"]
