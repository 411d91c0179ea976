"""What a codec promises: kept with its evidence, refused where it is damaged or was never verified."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.directory import load_codec
from kvcompress.codec.promise import MOST_QP, QUALITIES, Loss, Promise, Setting, promises_from_json
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError, InputError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import promised

HIGH = promised({"high": 90})["high"]


def test_a_promise_survives_json() -> None:
    for setting in (Setting("latents", 3), Setting("residual", 3, 15), Setting("int8"), Setting("lossless")):
        promise = Promise("high", setting, 20, 1000, 256, HIGH.kl_nats, HIGH.context_lost, HIGH.top1_lost)
        for stated in (promise, replace(promise, size_ratio=40.5)):
            assert Promise.from_json("high", json.loads(json.dumps(stated.to_json()))) == stated
    assert promises_from_json({"high": HIGH.to_json()}) == {"high": HIGH}
    assert promises_from_json(None) == promises_from_json({}) == {}


def test_the_highest_rate_is_the_codecs() -> None:
    assert MOST_QP == HIGHEST_QP


DAMAGES: list[dict[str, Any]] = [
    {"sessions": 18},
    {"sessions": -1},
    {"sessions": 20.0},
    {"sessions": True},
    {"stored": {"kind": "latents"}},
    {"stored": {"kind": "latents", "rate": 321}},
    {"stored": {"kind": "latents", "rate": -1}},
    {"stored": {"kind": "latents", "rate": "9"}},
    {"stored": {"kind": "residual", "rate": 9}},
    {"stored": {"kind": "lossless", "rate": 9}},
    {"stored": {"kind": "by heart"}},
    {"stored": {"kind": "int8", "colour": 1}},
    {"stored": None},
    {"kl_nats": {"bound": 0.02, "measured": 0.021, "beyond": 0}},
    {"kl_nats": {"bound": 0.02, "measured": 0.01, "beyond": 2}},
    {"kl_nats": {"bound": 0.02, "measured": float("nan"), "beyond": 0}},
    {"kl_nats": {"bound": 0.02, "measured": -0.01, "beyond": 0}},
    {"kl_nats": {"bound": 0.02, "measured": "0", "beyond": 0}},
    {"kl_nats": {"bound": 0.02, "measured": 0.01}},
    {"kl_nats": 3},
    {"author": "me"},
    {"size_ratio": "large"},
    {"size_ratio": -1.0},
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_promise_is_refused_with_the_remedy(damage: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"promise 'high' is damaged.*kvcompress calibrate"):
        Promise.from_json("high", HIGH.to_json() | damage)


@pytest.mark.parametrize("part", sorted(HIGH.to_json()))
def test_a_promise_without_a_part_is_refused(part: str) -> None:
    data = HIGH.to_json()
    del data[part]
    with pytest.raises(CheckpointError, match=r"damaged.*kvcompress calibrate"):
        Promise.from_json("high", data)


@pytest.mark.parametrize("data", [3, "x", [HIGH.to_json()], {"high": None}])
def test_what_is_no_table_of_promises_is_refused(data: Any) -> None:
    with pytest.raises(CheckpointError, match=r"damaged.*kvcompress calibrate"):
        promises_from_json(data)


def test_promises_are_no_part_of_a_codecs_identity_and_lie_in_its_directory(
    codec: TinyVAECodec, tmp_path: Path
) -> None:
    other = copy.deepcopy(codec)
    other.promises = promised({"high": 33})
    other._fingerprint = None
    assert other.fingerprint == codec.fingerprint
    save_codec(other, tmp_path / "codec")
    assert load_codec(tmp_path / "codec").promises == other.promises


def test_a_codec_with_damaged_promises_still_decodes(codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "codec")
    place = tmp_path / "codec" / "config.json"
    config = json.loads(place.read_text())
    config["promises"]["high"]["sessions"] = 3
    place.write_text(json.dumps(config))
    loaded = load_codec(tmp_path / "codec")
    back = loaded.decode(loaded.encode(snapshot, 80))
    assert torch.equal(back.layers[0].keys, codec.decode(codec.encode(snapshot, 80)).layers[0].keys)
    with pytest.raises(CheckpointError, match=r"3 sessions are too few.*kvcompress calibrate"):
        encode_at_quality(loaded, snapshot, "high")


def test_rates_of_older_versions_promise_nothing(codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "codec")
    place = tmp_path / "codec" / "config.json"
    config = json.loads(place.read_text())
    del config["promises"]
    place.write_text(json.dumps(config | {"tiers": {"transparent": 120, "high": 90, "usable": 60}}))
    old = load_codec(tmp_path / "codec")
    assert old.tiers == {}
    assert old.fingerprint == codec.fingerprint
    for quality in QUALITIES:
        for wish in (old.qp_of, lambda word: encode_at_quality(old, snapshot, word)):
            with pytest.raises(InputError, match=rf"'{quality}' was never verified.*kvcompress calibrate.*--max-kl"):
                wish(quality)


def test_what_is_promised_is_how_it_is_stored(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    mixed = copy.deepcopy(codec)
    losses = (HIGH.kl_nats, HIGH.context_lost, HIGH.top1_lost)
    settings = {
        "usable": Setting("latents", 40),
        "high": Setting("residual", 50, 62),
        "transparent": Setting("lossless"),
    }
    mixed.promises = {name: Promise(name, setting, 20, 100, 64, *losses) for name, setting in settings.items()}
    assert mixed.tiers == {"usable": 40}
    assert encode_at_quality(mixed, snapshot, "usable").settings == {"rate": 40, "quality": "usable"}
    stated = {"rate": 50, "residual_rate": 62, "quality": "high", "stored": "residual"}
    assert encode_at_quality(mixed, snapshot, "high").settings == stated
    whole = encode_at_quality(mixed, snapshot, "transparent")
    assert (whole.codec, whole.settings) == ("lossless", {"quality": "transparent", "stored": "lossless"})
    with pytest.raises(InputError, match="latents alone do not keep 'high'"):
        mixed.qp_of("high")


def test_only_what_is_known_to_be_as_good_stands_in_for_unlike_sessions(
    codec: TinyVAECodec, snapshot: KVSnapshot
) -> None:
    unlike = copy.deepcopy(codec)
    spread = {"bits_per_token": [1e-3, 0.0], "error": [1e6, 0.0]}  # nothing is ordinary
    unlike.fitted["known"] = {"sessions": 9, "tiers": dict.fromkeys(QUALITIES, spread)}
    unlike.promises = {name: promise for name, promise in codec.promises.items() if name != "fallback"}
    assert encode_at_quality(unlike, snapshot, "high").codec == "lossless"
    unlike.promises = codec.promises | promised({"fallback": None})
    assert encode_at_quality(unlike, snapshot, "high").codec == "int8"
    with pytest.raises(InputError, match="no quality 'fallback'"):
        encode_at_quality(unlike, snapshot, "fallback")


def test_a_loss_is_three_numbers() -> None:
    assert Loss.from_json({"bound": 1, "measured": 0, "beyond": 0}) == Loss(1.0, 0.0, 0)
