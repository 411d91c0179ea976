"""Hash everything that a cache depends on: configuration, weights, rotary embedding, tokenizer.

Two loads of one checkpoint must agree, whatever the data type, the device or the directory; two models that would
continue a session differently must not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kvcompress.errors import InputError
from kvcompress.format.default_device import on_cpu
from kvcompress.hf.rope import parse_config, rotary_parts
from kvcompress.hf.stored_weights import load_stored
from kvcompress.hf.types import CausalLM, Tokenizer, require_a_model
from kvcompress.snapshot import ModelFingerprint

RUN_TIME_KEYS = frozenset(
    {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype"}
    | {"use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"}
    | {"attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"}
    | {"problem_type", "id2label", "label2id"}
    # What a GGUF file leaves behind; how weights were stored before they were loaded is told by the weights.
    | {"quantization_config", "_model_name_or_path"}
)
SPECIAL_TOKEN_KEYS = frozenset({"pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id"})
FREQUENCY_TOLERANCE = 1e-5  # far above one unit in the last place between processors, far below bfloat16 rounding

_WEIGHTS: WeakKeyDictionary[Any, tuple[object, str]] = WeakKeyDictionary()
_STORED: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
_TOKENIZERS: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()


@on_cpu
def fingerprint(model: CausalLM, tokenizer: Tokenizer | None = None) -> ModelFingerprint:
    """Return the content hashes of a model and, if given, of its tokenizer.

    The hash of the weights is kept with the model object and computed again as soon as a weight was changed in place or
    exchanged. A change through `parameter.data` leaves no trace in torch and is not noticed.

    Raises:
        InputError: Some weights are not in memory.
    """
    require_a_model(model)
    return ModelFingerprint(
        config=_config_digest(model),
        weights=weights_digest(model),
        rope=rope_digest(model),
        tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
    )


def config_json(model: CausalLM) -> dict[str, Any]:
    """Return the model's configuration as JSON-able data without keys of one run, one path or one version."""
    return dict(_without(json.loads(model.config.to_json_string(use_diff=False)), RUN_TIME_KEYS))


def rope_digest(model: CausalLM) -> str:
    """Hash how the model rotates: its parameters, its class and, where they are not as configured, its frequencies.

    Frequencies equal to the configured ones up to rounding do not enter: processors differ in the last bit.
    """
    config, rotary = model.config.get_text_config(decoder=True), _live_rotary(model)
    facts: dict[str, Any] = {"class": type(rotary).__name__, "parameters": getattr(config, "rope_parameters", None)}
    if rotary is not None and not rotates_as_configured(model):
        live = _frequencies(rotary)
        facts["live"] = {name: hashlib.sha256(_canonical_bytes(value)).hexdigest() for name, value in live.items()}
    return _hash_json(facts)


def configured_rope_digest(config: Mapping[str, Any]) -> str:
    """Return the same of a model of which only the configuration is known, and which rotates as that says.

    Raises:
        InputError: The configuration is not understood.
    """
    parsed = parse_config(json.dumps(dict(config), sort_keys=True))
    parts = rotary_parts(parsed)
    rotary = None if parts is None else parts[0]
    return _hash_json({"class": type(rotary).__name__, "parameters": getattr(parsed, "rope_parameters", None)})


def rotates_as_configured(model: CausalLM) -> bool:
    """Return whether the frequencies in the model are those of its configuration; `model.to(bfloat16)` rounds them."""
    rotary = _live_rotary(model)
    parts = rotary_parts(parse_config(json.dumps(config_json(model), sort_keys=True)))
    if rotary is None or parts is None:
        return rotary is None and parts is None
    live, planned = _frequencies(rotary), _frequencies(parts[0])
    return live.keys() == planned.keys() and all(
        value.shape == planned[name].shape and torch.allclose(value, planned[name], rtol=FREQUENCY_TOLERANCE, atol=0.0)
        for name, value in live.items()
    )


def _live_rotary(model: CausalLM) -> nn.Module | None:
    return next((module for module in model.modules() if _is_rotary(module)), None)


def _config_digest(model: CausalLM) -> str:
    # Special tokens are set by many scripts after loading; they steer generation, not the meaning of a cache.
    return config_digest(config_json(model))


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the hash of a configuration as `config_json` gives it and origins hold it."""
    return _hash_json(_without(dict(config), SPECIAL_TOKEN_KEYS))


def loaded_weights_digest(model: CausalLM) -> str:
    """Return the hash of the weights as they are in memory, rounded to the data type that the model was loaded in.

    Raises:
        InputError: Some weights are not in memory.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    stamp = _stamp(state)
    known = _WEIGHTS.get(model)
    if known is not None and stamp is not None and known[0] == stamp:
        return known[1]
    digest, seen = hashlib.sha256(), set()
    for name in sorted(state):
        tensor = state[name]
        if tensor.is_meta:
            raise InputError(f"weight {name} is not in memory", "Load the model without offloading")
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue  # tied: the same memory under a second name
        seen.add(place)
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(_canonical_bytes(tensor))
    _WEIGHTS[model] = (stamp, digest.hexdigest())
    return digest.hexdigest()


def weights_digest(model: CausalLM) -> str:
    """Return the hash of a model's weights as its checkpoint stores them, whatever data type it was loaded in.

    A data type that cannot hold them (float16 for bfloat16 weights) rounds them on the way: then the checkpoint is read
    once more. Without one, or where the weights are no longer its own, what is in memory counts.
    """
    loaded = loaded_weights_digest(model)
    known = _STORED.get(model)
    if known is None or known[0] != loaded:
        stored = load_stored(model)
        known = _STORED[model] = (loaded, loaded if stored is None else loaded_weights_digest(stored))
    return known[1]


def _stamp(state: dict[str, Tensor]) -> object:
    """Return a value that changes when a weight does, or None where torch does not count changes."""
    if any(tensor.is_inference() for tensor in state.values()):
        return None
    return tuple((name, id(tensor), tensor.data_ptr(), tensor.dtype, tensor._version) for name, tensor in state.items())


def _canonical_bytes(tensor: Tensor) -> bytes | Any:
    """Return the values as little-endian float32 (int64 for integers and booleans), whatever they are stored in."""
    kind = torch.float32 if tensor.is_floating_point() else torch.int64
    array = tensor.detach().to("cpu", kind).contiguous().reshape(-1).numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).data if array.size else b""


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Hash vocabulary, merges, normalisation and chat template, but not padding and truncation, which calls change."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    raw = hashlib.sha256(f"{text}\0{template}".encode()).hexdigest()
    known = _TOKENIZERS.get(tokenizer)
    if known is not None and known[0] == raw:
        return known[1]  # reading a large vocabulary back from JSON costs more than hashing it
    vocabulary = json.loads(text)
    if backend is not None:
        vocabulary = {key: value for key, value in vocabulary.items() if key not in ("padding", "truncation")}
    digest = _hash_json([vocabulary, template])
    _TOKENIZERS[tokenizer] = (raw, digest)
    return digest


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """Hash which id stands for which token, and nothing else: what a table of tokens depends on.

    Converted by another tool a tokenizer may split texts by other rules; its ids mean the same all the same.
    """
    return _hash_json(tokenizer.get_vocab())


def _is_rotary(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RotaryEmbedding") and bool(_frequencies(module))


def _frequencies(rotary: nn.Module) -> dict[str, Tensor]:
    """Return frequencies and scalings by name; of frequencies that change with the length, the original ones."""
    steady = not any(word in str(getattr(rotary, "rope_type", "")) for word in ("dynamic", "longrope"))
    found = {
        name: buffer.detach().to("cpu", torch.float32)
        for name, buffer in rotary.named_buffers(recurse=False)
        if name.endswith("inv_freq") and (steady or name.endswith("original_inv_freq"))
    }
    if found:
        scalings = {key: value for key, value in vars(rotary).items() if key.endswith("attention_scaling")}
        found |= {key: torch.tensor([float(value)], dtype=torch.float32) for key, value in scalings.items()}
    return found


def _without(data: Any, keys: frozenset[str]) -> Any:
    """Drop `keys` at every depth: composite configurations repeat them in their parts."""
    if isinstance(data, dict):
        return {key: _without(value, keys) for key, value in data.items() if key not in keys}
    return data


def _hash_json(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
