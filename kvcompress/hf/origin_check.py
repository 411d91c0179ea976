"""Whether what a file says of its model is true, field by field.

The hashes of an origin say which model it is; its configuration says how to turn keys, its layers how to read them.
Checksums that fit show that nobody slipped, not that it is right: the configuration must be the one that was hashed,
and where a reference is at hand, a codec's own origin or a model, what differs is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvcompress.errors import MismatchError
from kvcompress.hf.families import cache_shapes, rotating_layers
from kvcompress.hf.fingerprint import (
    RUN_TIME_KEYS,
    SPECIAL_TOKEN_KEYS,
    config_digest,
    config_json,
    fingerprint,
    loaded_weights_digest,
)
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot, Origin

REMEDY = "Use the model and tokenizer that this cache was recorded with"
DAMAGED = "The file was changed after it was written; record the session again"
FREE_KEYS = RUN_TIME_KEYS | SPECIAL_TOKEN_KEYS


def require_consistent(origin: Origin) -> None:
    """Raise `MismatchError` where an origin's configuration is not the one that its fingerprint names."""
    found = config_digest(origin.config)
    if found != origin.fingerprint.config:
        what = "the model's configuration in the file"
        raise MismatchError(what, origin.fingerprint.config[:16], found[:16], DAMAGED)
    stated = str(origin.config.get("model_type", origin.model_type))
    if stated != origin.model_type:
        raise MismatchError("the model's type in the file", stated, origin.model_type, DAMAGED)


def require_same_config(expected: Mapping[str, Any], origin: Origin) -> None:
    """Raise `MismatchError` that names the first field in which an origin's configuration is not the expected one.

    Args:
        expected: Configuration of the codec's or the user's model, as `Origin.config`.
        origin: Of the session.
    """
    _require_field("the model's configuration", expected, origin.config)
    require_consistent(origin)


def require_model(origin: Origin, model: CausalLM, tokenizer: Tokenizer | None = None) -> None:
    """Raise `MismatchError` unless a session is of this model, by hashes and by what its origin says.

    Args:
        origin: Of the session.
        model: The model that is to go on from it.
        tokenizer: Compared with the recording one if both are known.
    """
    mine, theirs = fingerprint(model, tokenizer), origin.fingerprint
    if mine.weights != theirs.weights and theirs.weights == loaded_weights_digest(model):
        mine = replace(mine, weights=theirs.weights)  # recorded before fingerprints were those of the stored weights
    expected = config_json(model)
    if mine.config != theirs.config or config_digest(origin.config) != theirs.config:
        _require_field("the model's configuration", expected, origin.config)
    theirs.require_match(mine)
    require_consistent(origin)
    if origin.model_type != str(model.config.model_type):
        raise MismatchError("the model's type", origin.model_type, str(model.config.model_type), REMEDY)
    turned = rotating_layers(model, expected)
    for index, (said, found) in enumerate(zip(origin.rope_layers, turned, strict=False)):
        if said and not found:
            raise MismatchError(f"the rotation of layer {index}", "rotates", "does not rotate", REMEDY)


def require_shapes(snapshot: KVSnapshot, model: CausalLM) -> None:
    """Raise `MismatchError` where a layer has other heads or head sizes than the model's, or tokens are not counted."""
    for index, (layer, expected) in enumerate(zip(snapshot.layers, cache_shapes(model), strict=True)):
        found = (layer.keys.shape[0], layer.keys.shape[2], layer.values.shape[2])
        if found != expected:
            what = f"layer {index}: heads, size of keys, size of values"
            raise MismatchError(what, _spelt(list(found)), _spelt(list(expected)), REMEDY)
    if snapshot.origin.next_position != snapshot.tokens:
        what = "the position to go on from"
        raise MismatchError(what, str(snapshot.origin.next_position), str(snapshot.tokens), DAMAGED)


def _require_field(name: str, mine: Any, theirs: Any) -> None:
    """Raise `MismatchError` at the first field that differs, keys of one run apart."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in sorted((mine.keys() | theirs.keys()) - FREE_KEYS):
            inner = f"{name[:-1]}.{key})" if name.endswith(")") else f"{name} ({key})"
            _require_field(inner, mine.get(key), theirs.get(key))
    elif json.dumps(mine, sort_keys=True) != json.dumps(theirs, sort_keys=True):
        raise MismatchError(name, _spelt(theirs), _spelt(mine), REMEDY)


def _spelt(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"
