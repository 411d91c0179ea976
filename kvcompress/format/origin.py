"""What a file states about its model, validated before use.

The configuration classes of model families believe their numbers: one entry for each of a billion layers, a table of as
many angles as a head has dimensions. So numbers that make lists or tensors are bounded here, wherever in a
configuration they stand, and those that the file itself contradicts are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.format.json_section import MAX_LAYERS, MAX_NUMBER
from kvcompress.snapshot import LAYER_KINDS, Origin

MOST_COUNT = 1 << 16
"""Heads, experts, labels, dimensions of a head: of these no model has more."""

MOST_SIZE = 1 << 31
"""Any other integer of a configuration that names a size."""

_COUNTS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"layer|depth", re.I), MAX_LAYERS),
    (re.compile(r"label|head|expert|block|stage|codebook|group|_dim$|^dim$|_rank$|rotary", re.I), MOST_COUNT),
    (re.compile(r"_size$|_length$|position|window|^n_|^num_", re.I), MOST_SIZE),
)
"""Keys whose integers count something, and the most that is believed; the first that fits decides."""

_SHARE = re.compile(r"partial_rotary_factor|rotary_pct|rope_pct|rotary_fraction", re.I)
"""Keys whose numbers are a share of a head."""

_TOKEN = re.compile(r"_token_(id|index)$")


def origin_of_json(data: Mapping[str, Any]) -> Origin:
    """Return the origin that a file names.

    Raises:
        FormatError: A field is missing, of another kind, or a number is out of all proportion.
    """
    try:
        origin = Origin.from_json(data)
    except InputError as error:
        raise FormatError(error.what, error.remedy) from error
    require_possible(origin)
    return origin


def require_possible(origin: Origin) -> None:
    """Raise `FormatError` where an origin cannot be that of a model."""
    layers = len(origin.layer_kinds)
    if layers > MAX_LAYERS or len(origin.rope_layers) != layers:
        raise FormatError(f"the origin names {layers} kinds of layers and {len(origin.rope_layers)} rotations")
    odd = sorted(set(origin.layer_kinds) - set(LAYER_KINDS))
    if odd:
        raise FormatError(f"the origin names the unknown kind of layer {odd[0]!r}")
    if not 0 <= origin.next_position <= MAX_NUMBER:
        raise FormatError(f"the origin's next position {origin.next_position} is impossible")
    require_possible_config(origin.config, layers)


def require_possible_config(config: Mapping[str, Any], layers: int | None = None) -> None:
    """Raise `FormatError` where a number in a model's configuration is out of all proportion.

    Args:
        config: The configuration, as JSON holds it; parts of it may be configurations themselves.
        layers: How many layers the model's cache has, where that is known: it may have fewer than the model, never
            more.
    """
    for key, value in _numbers(config):
        most = next((most for pattern, most in _COUNTS if pattern.search(key)), None)
        if isinstance(value, int) and most is not None and abs(value) > most:
            raise FormatError(f"the model's configuration says {key} = {value}, more than {most}")
        if _SHARE.search(key) and not 0 <= value <= 1:
            raise FormatError(f"the model's configuration says {key} = {value}, which is no share")
    stated = config.get("num_hidden_layers")
    if layers is not None and type(stated) is int and stated < layers:
        raise FormatError(f"the model's configuration says num_hidden_layers = {stated}, its cache has {layers}")


def require_vocabulary(
    token_ids: Tensor, config: Mapping[str, Any], failure: type[InputError] | type[FormatError] = FormatError
) -> None:
    """Refuse token ids [N] int64 that the model has no entry for, where its configuration tells how many it has.

    An id that the configuration itself names, such as that of an image, may lie behind the vocabulary.
    """
    size = config.get("vocab_size")
    largest = int(token_ids.max()) if token_ids.numel() else -1
    if type(size) is not int or largest < size:
        return
    named = [value for key, value in _numbers(config) if _TOKEN.search(key) and isinstance(value, int)]
    if largest > max(named, default=-1):
        refused: KVCompressError = failure(f"token id {largest} lies outside the vocabulary of {size}")
        raise refused


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers of a configuration with the key that each stands under, those in lists and parts too."""
    rest: list[tuple[str, Any]] = list(config.items())
    while rest:
        key, value = rest.pop()
        if isinstance(value, Mapping):
            rest += value.items()
        elif isinstance(value, list | tuple):
            rest += ((key, one) for one in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(key), value
