"""Models: GGUF files, and directories of configuration, weights and tokenizer, as far as the package looks at them.

Loading a whole model takes tens of milliseconds, so most cases end at what the package looks at before transformers is
called; one in sixteen goes on. What transformers raises there becomes one line, whatever it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from eval.fuzz import gguf_file
from eval.fuzz.mutate import bytes_changed, json_text, safetensors_changed
from eval.fuzz.subject import Subject, through
from kvcompress.hf.gguf_header import require_sound
from kvcompress.hf.loading import SHARD_INDEX, load_tokenizer, model_config, model_directory
from kvcompress.hf.loading import _load_weights as load_weights
from kvcompress.hf.loading import _with_config as with_config

_WHOLE = 16


def model_subjects(directory: Path) -> list[Subject]:
    """Return the kinds of this module."""
    weights, tokens = _weights(), _tokenizer()
    config, settings = (
        _config(),
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "b", "model_max_length": 9},
    )
    index = {"metadata": {"total_size": 64}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    place = directory / "model"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    (place / "tokenizer.json").write_text(json.dumps(tokens))
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "model.safetensors").write_bytes(weights)
    return [
        Subject("gguf", gguf_file.changed, partial(through, directory / "case.gguf", require_sound)),
        _file("model config", place / "config.json", partial(_json, config), _configured),
        _file("model index", place / SHARD_INDEX, partial(_json, index), lambda data: with_config(place)),
        _file("model weights", place / "model.safetensors", partial(safetensors_changed, weights), _weighed),
        _file("tokenizer", place / "tokenizer.json", partial(_json, tokens), _spoken),
        _file("tokenizer config", place / "tokenizer_config.json", partial(_json, settings), _spoken),
    ]


def _json(value: Any, chance: Any) -> bytes:
    return json_text(chance, value) if chance.random() < 0.9 else bytes_changed(chance, json.dumps(value).encode())


def _file(name: str, path: Path, change: Callable[..., bytes], read: Callable[..., object]) -> Subject:
    """Return the kind of one file of a directory, which is as it was after each case."""
    good = path.read_bytes() if path.exists() else None

    def case(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(data) if read.__name__ == "<lambda>" else read(path.parent, sum(data) % _WHOLE == 0)
        finally:
            path.unlink() if good is None else path.write_bytes(good)

    return Subject(name, change, case)


def _configured(place: Path, whole: bool) -> None:
    model_config(place) if whole else with_config(place)


def _weighed(place: Path, whole: bool) -> None:
    if whole:
        load_weights(with_config(place), "float32")


def _spoken(place: Path, whole: bool) -> None:
    with_config(place)
    if whole:
        load_tokenizer(model_directory(place))


def _config() -> dict[str, Any]:
    sizes = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32}
    rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": True}
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **heads, **rope}


def _weights() -> bytes:
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [4, 8], "model.norm.weight": [8]}
    layer = {"self_attn.q_proj": [8, 8], "self_attn.k_proj": [4, 8], "self_attn.v_proj": [4, 8]}
    layer |= {"self_attn.o_proj": [8, 8], "mlp.gate_proj": [8, 8], "mlp.up_proj": [8, 8], "mlp.down_proj": [8, 8]}
    layer |= {"input_layernorm": [8], "post_attention_layernorm": [8]}
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def _tokenizer() -> dict[str, Any]:
    word = {"id": 3, "content": "d", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "merges": [], "unk_token": None}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parts = {"normalizer": None, "pre_tokenizer": split, "post_processor": None, "decoder": split, "model": model}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [word | {"special": True}], **parts}
