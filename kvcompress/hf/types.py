"""Protocols of models, tokenizers and caches, for code that must not import transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from kvcompress.errors import InputError


class CausalLM(Protocol):
    """A causal language model of transformers, or what behaves like one."""

    config: Any
    training: bool

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it over tokens; only `kvcompress.hf.forward` does."""
        ...

    @property
    def forward(self) -> Any:
        """What a call runs; its signature says what the model takes."""
        ...

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return its weights by name."""
        ...

    def buffers(self) -> Iterator[Any]:
        """Yield what is stored with its weights and not trained."""
        ...

    def set_attn_implementation(self, attn_implementation: Any) -> None:
        """Choose how attention is computed."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield its weights."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Yield its parts."""
        ...

    def get_input_embeddings(self) -> Any:
        """Return the table of its token embeddings."""
        ...


class Tokenizer(Protocol):
    """A tokenizer of transformers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return token ids and masks of a text."""
        ...

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the text of tokens."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Return the id of each token."""
        ...

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Lay a conversation out as the model knows it."""
        ...

    @property
    def eos_token_id(self) -> Any:
        """Id of the token that ends an answer."""
        ...

    @property
    def bos_token_id(self) -> Any:
        """Id of the token that opens a text, None where there is none."""
        ...


class Cache(Protocol):
    """A key-value cache of transformers: one layer after the other, each with `keys` and `values` [B, H, T, D]."""

    @property
    def layers(self) -> Any:
        """Its layers, the first one first."""
        ...

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values to a layer."""
        ...

    def batch_repeat_interleave(self, repeats: int) -> Any:
        """Repeat the one sequence that it holds."""
        ...


def require_a_model(model: object) -> None:
    """Raise `InputError` where something is given for a model that has no configuration, so is none of transformers."""
    if getattr(model, "config", None) is None or not callable(model):
        what = f"a model is wanted, not {type(model).__name__}"
        raise InputError(what, "kv.load_model returns a model and its tokenizer; give the first of the two")
    if hasattr(model, "_orig_mod"):  # its weights have other names
        raise InputError("torch.compile has wrapped the model", "Pass the model itself; model.compile() wraps nothing")
