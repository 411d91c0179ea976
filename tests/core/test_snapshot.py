"""KVSnapshot is validated in one place."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kvcompress.errors import InputError, MismatchError
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin

FINGERPRINT = ModelFingerprint("c" * 64, "w" * 64, "r" * 64, "t" * 64)
ORIGIN = Origin(FINGERPRINT, "llama", "tiny", {}, "float32", ("full_attention",), (True,), 3)
LAYER = LayerKV(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.arange(3))


def snapshot(layer: LayerKV = LAYER, **changes: object) -> KVSnapshot:
    return KVSnapshot((layer,), torch.arange(3), dataclasses.replace(ORIGIN, **changes))


def test_sizes_count_two_bytes_a_value() -> None:
    assert snapshot().values_count == 2 * 3 * (4 + 5)
    assert snapshot().raw_bytes == 2 * 2 * 3 * (4 + 5)


@pytest.mark.parametrize(
    "layer",
    [
        LayerKV(torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.arange(3)),
        LayerKV(torch.zeros(2, 3, 4), torch.zeros(2, 2, 4), torch.arange(3)),
        LayerKV(torch.zeros(2, 3, 4).half(), torch.zeros(2, 3, 4).half(), torch.arange(3)),
        LayerKV(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.arange(2)),
        LayerKV(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.tensor([0, 2, 1])),
        LayerKV(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.tensor([-1, 0, 1])),
        LayerKV(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.tensor([0, 1, 3])),
        LayerKV(torch.full((2, 3, 4), float("inf")), torch.zeros(2, 3, 4), torch.arange(3)),
        LayerKV(torch.zeros(2, 3, 4), torch.full((2, 3, 4), float("nan")), torch.arange(3)),
    ],
)
def test_inconsistent_layers_are_refused(layer: LayerKV) -> None:
    with pytest.raises(InputError, match="layer 0"):
        snapshot(layer)


def test_wrong_number_of_layers_and_negative_ids_are_refused() -> None:
    with pytest.raises(InputError, match="layers"):
        snapshot(layer_kinds=("full_attention",) * 2)
    with pytest.raises(InputError, match="negative"):
        KVSnapshot((LAYER,), torch.tensor([0, -1, 2]), ORIGIN)


def test_origin_survives_json() -> None:
    assert Origin.from_json(ORIGIN.to_json()) == ORIGIN


@pytest.mark.parametrize("field", list(ORIGIN.to_json()))
def test_incomplete_origins_are_refused(field: str) -> None:
    data = ORIGIN.to_json()
    del data[field]
    with pytest.raises(InputError, match="origin"):
        Origin.from_json(data)


@pytest.mark.parametrize("part", ["config", "weights", "rope", "tokenizer"])
def test_mismatch_names_the_part_and_both_sides(part: str) -> None:
    other = dataclasses.replace(FINGERPRINT, **{part: "x" * 64})
    with pytest.raises(MismatchError, match=part) as caught:
        FINGERPRINT.require_match(other)
    assert "x" * 16 in str(caught.value)
    assert getattr(FINGERPRINT, part)[:16] in str(caught.value)


def test_unknown_tokenizers_are_not_compared() -> None:
    FINGERPRINT.require_match(dataclasses.replace(FINGERPRINT, tokenizer=None))
