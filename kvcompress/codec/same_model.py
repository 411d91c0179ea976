"""Compare what a file states about its model with what its codec states, field by field.

Digests in a file are text like any other, so equal digests do not make equal models. A codec knows the configuration of
its own model, and keys are turned by the configuration in the file: where the two differ, the file would decode to
other keys without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from kvcompress.errors import MismatchError
from kvcompress.hf.architecture import Architecture
from kvcompress.hf.fingerprint import SPECIAL_TOKEN_KEYS
from kvcompress.hf.rope import parse_config
from kvcompress.snapshot import Origin

REMEDY = "Use the codec of the model that recorded the file; a file that says this of the same model was altered"
LONGEST_VALUE = 40
_ABSENT = object()


def require_same_model(own: Origin, origin: Origin) -> None:
    """Refuse a session of another model than the codec's.

    Args:
        own: The codec's.
        origin: Of the session; its data type may be another, and so may special tokens, which many scripts set.

    Raises:
        MismatchError: A field differs, which it names.
    """
    named = ("model_type", "config", "layer_kinds", "rope_layers")
    mine, theirs = (_plain({name: asdict(one)[name] for name in named}) for one in (own, origin))
    for path, expected, found in _differences(mine, theirs):
        raise MismatchError(f"the model's {path}", _spelt(expected), _spelt(found), REMEDY)


def require_same_rotation(own: Origin, origin: Origin) -> None:
    """Refuse a session whose keys would be turned otherwise than those of the codec's model.

    Raises:
        MismatchError: What its configuration says of positions differs, whatever the spelling.
        InputError: The configuration is not understood.
    """
    mine, theirs = (Architecture(_rotation(one), "") for one in (own, origin))
    mine.require_same(theirs)


def _rotation(origin: Origin) -> dict[str, Any]:
    """Return all that a configuration says of rotation, by whatever names it was given."""
    parsed = parse_config(json.dumps(dict(origin.config), sort_keys=True))
    named = ("rope_parameters", "partial_rotary_factor", "rotary_pct", "rotary_dim", "layer_types", "head_dim")
    stated = {name: _plain(getattr(parsed, name, None)) for name in named}
    return {**stated, "kinds": list(origin.layer_kinds), "turned": list(origin.rope_layers)}


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value, default=str))


def _differences(mine: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two JSON values differ: the path, what one has, what the other has."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in sorted((mine.keys() | theirs.keys()) - SPECIAL_TOKEN_KEYS):
            inner = f"{path}.{key}" if path else key
            yield from _differences(mine.get(key, _ABSENT), theirs.get(key, _ABSENT), inner)
    elif mine != theirs or type(mine) is not type(theirs):
        yield path, mine, theirs


def _spelt(value: Any) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
