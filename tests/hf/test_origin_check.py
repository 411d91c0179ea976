"""What a file says of its model is compared with it; the same checkpoint in another data type is the same model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.registry import load_snapshot
from kvcompress.errors import InputError, KVCompressError, MismatchError
from kvcompress.format.container import save
from kvcompress.format.raw_snapshot import save_raw
from kvcompress.hf import capture, fingerprint, load_model, recompute_with, restore
from kvcompress.snapshot import KVSnapshot
from tests.hf.families import ACCEPTED, build, model_of, session


def with_config(snapshot: KVSnapshot, change: dict[str, Any], drop: str | None = None) -> KVSnapshot:
    config = {name: value for name, value in {**snapshot.origin.config, **change}.items() if name != drop}
    return dataclasses.replace(snapshot, origin=dataclasses.replace(snapshot.origin, config=config))


FIELDS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, None, r"rope_parameters\.rope_theta"),
    ("llama", {"rope_theta": 5e5}, None, "rope_theta"),
    ("llama", {"num_key_value_heads": 4}, None, "num_key_value_heads"),
    ("llama", {}, "rope_parameters", "rope_parameters"),
    ("llama", {"vocab_size": 96}, None, "vocab_size"),
    ("mistral_window", {"sliding_window": 8}, None, "sliding_window"),
    ("gemma3", {"layer_types": ["full_attention", "full_attention"]}, None, "layer_types"),
]


@pytest.mark.parametrize(("name", "change", "drop", "named"), FIELDS)
def test_a_changed_field_is_named(
    name: str, change: dict[str, Any], drop: str | None, named: str, tmp_path: Path
) -> None:
    model = model_of(name)
    changed = with_config(capture(model, session(9)), change, drop)
    with pytest.raises(MismatchError, match=rf"the model's configuration \({named}\)") as caught:
        restore(changed, model)
    assert "\n" not in str(caught.value)
    raw, coded = tmp_path / "raw.safetensors", tmp_path / "coded.kvz"
    save_raw(raw, changed)
    save(coded, LosslessCodec().encode(changed))
    for path in (raw, coded):
        with pytest.raises(MismatchError, match=named):
            load_snapshot(path, None, recompute_with(model))
        with pytest.raises(MismatchError, match=named):
            restore(load_snapshot(path), model)  # decoded without a model


@pytest.mark.parametrize(
    "change",
    [{"model_type": "qwen2"}, {"next_position": 12}, {"rope_layers": (True, True)}, {"layer_kinds": ("x", "y")}],
)
def test_other_fields_of_an_origin_are_compared_too(change: dict[str, Any]) -> None:
    name = "gpt2" if "rope_layers" in change else "llama"
    model = model_of(name)
    snapshot = capture(model, session(9))
    changed = dataclasses.replace(snapshot, origin=dataclasses.replace(snapshot.origin, **change))
    with pytest.raises(KVCompressError):
        restore(changed, model)


def test_layers_of_another_shape_are_refused() -> None:
    model = model_of("llama")
    snapshot = capture(model, session(9))
    layers = tuple(dataclasses.replace(kv, values=kv.values[..., :4]) for kv in snapshot.layers)
    with pytest.raises(MismatchError, match="layer 0: heads"):
        restore(dataclasses.replace(snapshot, layers=layers), model)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_one_checkpoint_has_one_fingerprint_in_every_data_type(stored: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ACCEPTED["llama"]())
    with torch.no_grad():
        for parameter in model.parameters():  # numbers that the other data types cannot hold
            parameter.copy_(torch.randn_like(parameter) * 1e-5 if parameter.ndim > 1 else parameter)
    model.to(getattr(torch, stored)).save_pretrained(tmp_path)
    prints = {dtype: fingerprint(load_model(tmp_path, dtype)[0]) for dtype in ("float32", "bfloat16", "float16")}
    assert len(set(prints.values())) == 1
    assert prints["float32"].weights == fingerprint(load_model(tmp_path, stored)[0]).weights


@pytest.mark.parametrize("other", ["float16", "float32"])
def test_a_bfloat16_recording_goes_on_in_another_data_type(other: str, tmp_path: Path) -> None:
    model = build(ACCEPTED["llama"](), "bfloat16")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-6)  # below the normal numbers of float16
    model.save_pretrained(tmp_path)
    snapshot = capture(load_model(tmp_path, "bfloat16")[0], session(9))
    cache = restore(snapshot, load_model(tmp_path, other)[0])
    assert cache.layers[0].keys.dtype == getattr(torch, other)


def test_weights_changed_after_loading_are_another_model(tmp_path: Path) -> None:
    build(ACCEPTED["llama"]()).save_pretrained(tmp_path)
    snapshot = capture(load_model(tmp_path, "float32")[0], session(9))
    changed = load_model(tmp_path, "bfloat16")[0]
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(MismatchError, match="the model's weights"):
        restore(snapshot, changed)


def test_a_model_that_cannot_run_is_refused_in_one_line() -> None:
    model = build(ACCEPTED["llama"]())
    model.forward = lambda input_ids, past_key_values=None, **rest: {}["nothing"]  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot be run over") as caught:
        capture(model, session(4))
    assert "\n" not in str(caught.value)
