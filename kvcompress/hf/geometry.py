"""The cache geometry of a model from its configuration alone, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from kvcompress.hf.channels import LayerShape
from kvcompress.hf.families import layer_kinds, new_cache
from kvcompress.hf.forward import run
from kvcompress.hf.quiet import silence
from kvcompress.hf.types import Cache
from kvcompress.hub.trust import remote_code_is_trusted


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """What a fit's cost depends on.

    Attributes:
        parameters: Weights.
        vocab_size: Token ids.
        hidden_size: Of the embeddings.
        kinds: Kind of each layer.
        shapes: Shape of each layer's cache.
    """

    parameters: int
    vocab_size: int
    hidden_size: int
    kinds: tuple[str, ...]
    shapes: tuple[LayerShape, ...]


def geometry_of(config: Any) -> ModelGeometry:
    """Return the geometry of a configuration: the model is made on the meta device and run over two tokens there."""
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM
        with silence():
            model = made.from_config(config, trust_remote_code=remote_code_is_trusted()).eval()
        cache: Cache = new_cache(model)
        run(model, torch.zeros(1, 2, dtype=torch.int64), cache)
    shapes = []
    for layer in cache.layers:
        keys: Any = layer.keys
        values: Any = layer.values
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    table: Any = model.get_input_embeddings().weight
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelGeometry(parameters, table.shape[0], table.shape[1], layer_kinds(cache), tuple(shapes))
