"""Codecs: their configuration, weights and tables, promises, and what scorers learnt of their model.

The codec is a small one of random weights with the bundled codec's tables, so that a directory loads in milliseconds.
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from eval.fuzz.mutate import bytes_changed, json_text, safetensors_changed
from eval.fuzz.sessions import small_snapshot
from eval.fuzz.subject import Subject, require_same, through
from kvcompress.codec.directory import load_codec, load_tinyvae
from kvcompress.codec.facts import read_facts
from kvcompress.codec.promise import stated_promise
from kvcompress.codec.settings import TinyVAESettings
from kvcompress.codec.sound import require_buildable
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.prune.scorers.profiles import FITTED, fitted_file, profile_of
from kvcompress.prune.scorers.registry import SCORERS, find_scorer


def codec_subjects(directory: Path) -> list[Subject]:
    """Return the kinds of this module."""
    bundled = load_codec()
    codec, place = _small(bundled), directory / "small-codec"
    codec.fitted = {**bundled.fitted, "fingerprint": codec.fingerprint}
    codec.save_pretrained(place, config=codec.config_json())
    config, weights = json.loads((place / "config.json").read_text()), (place / "model.safetensors").read_bytes()
    unsigned = directory / "older-codec"
    codec.fitted = {}
    codec.save_pretrained(unsigned, config=codec.config_json())
    good = codec.fingerprint

    def configured(path: Path) -> None:
        read_facts(path.parent)
        settings = TinyVAESettings(quality="high", qp=60)
        stated_promise(path.parent, good, settings)
        found = load_tinyvae(path.parent)
        if "fingerprint" in found.fitted:
            require_same("the codec", found.fingerprint, good)

    return [
        _geometry(directory),
        Subject(
            "codec directory",
            partial(_config_changed, config),
            partial(_through, place / "config.json", (place / "config.json").read_bytes(), configured),
        ),
        Subject(
            "codec weights",
            lambda chance: safetensors_changed(weights, chance),
            partial(
                _through,
                place / "model.safetensors",
                weights,
                lambda path: require_same("the codec", load_tinyvae(path.parent).fingerprint, good),
            ),
        ),
        Subject(
            "older codec",
            partial(_numbers_changed, weights),
            partial(_through, unsigned / "model.safetensors", weights, _finite),
        ),
        _scorers(directory, codec),
    ]


def _through(path: Path, good: bytes, read: Any, data: bytes) -> None:
    """Read a case from its place, and put back what belongs there."""
    path.write_bytes(data)
    try:
        read(path)
    finally:
        path.write_bytes(good)


def _finite(path: Path) -> None:
    codec = load_tinyvae(path.parent)
    odd = [name for name, tensor in codec.state_dict().items() if not bool(tensor.isfinite().all())]
    require_same("weights that are no numbers", odd, [])


def _small(bundled: TinyVAECodec) -> TinyVAECodec:
    """Return a codec of two layers of two heads."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "rank": 8, "prior_rank": 4, "prior_taps": 2, "prior_width": 8}
    group = {"layers": [0, 1], "config": {"blocks": [4] * 8, **sizes, "reference_step": 1.0}}
    origin = small_snapshot().origin.to_json()
    model, promises = origin["fingerprint"], {name: part.to_json() for name, part in bundled.promises.items()}
    codec = TinyVAECodec([group], [[2, 4, 4]] * 2, model, origin=origin, promises=promises)
    codec.table_counts.copy_(bundled.table_counts)
    codec.table_offsets.copy_(bundled.table_offsets)
    return codec


def _config_changed(config: dict[str, Any], chance: Random) -> bytes:
    if chance.random() < 0.5:
        return json_text(chance, config)
    part = chance.choice(("promises", "fitted", "groups", "model", "origin"))
    changed = json_text(chance, config[part]).decode(errors="replace")
    rest = json.dumps({name: value for name, value in config.items() if name != part})
    return f'{rest[:-1]}, "{part}": {changed}}}'.encode()


def _numbers_changed(weights: bytes, chance: Random) -> bytes:
    """Return weights of which one tensor is of another type, or of which some bytes are those of NaN and infinity."""
    size = int.from_bytes(weights[:8], "little")
    header, data = json.loads(weights[8 : 8 + size]), bytearray(weights[8 + size :])
    if chance.random() < 0.3:
        return bytes_changed(chance, weights)
    if chance.random() < 0.3:
        name = chance.choice([name for name in header if name != "__metadata__"])
        header[name]["dtype"] = chance.choice(("F32", "F16", "BF16", "I32", "U8", "I16", "F64", "F8_E4M3", "BOOL"))
    else:
        names = [name for name, told in header.items() if name != "__metadata__" and told["dtype"] in ("F32", "F16")]
        told = header[chance.choice(names)]
        width = {"F32": 4, "F16": 2}[told["dtype"]]
        at = told["data_offsets"][0] + width * chance.randrange(
            (told["data_offsets"][1] - told["data_offsets"][0]) // width
        )
        words = {4: (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"), 2: (b"\0\x7e", b"\0\x7c", b"\0\xfc")}
        data[at : at + width] = chance.choice(words[width])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _geometry(directory: Path) -> Subject:
    """Return the kind of a codec's configuration that is compared with the header of the bundled codec's weights."""
    source, place = find_checkpoint("reference-lm-tinyvae"), directory / "codec"
    place.mkdir(exist_ok=True)
    if not (place / "model.safetensors").exists():
        (place / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
    config = json.loads((source / "config.json").read_text())
    small = {name: config[name] for name in ("groups", "shapes", "model")}
    return Subject(
        "codec config",
        lambda chance: json_text(chance, small),
        partial(through, place / "config.json", lambda path: require_buildable(path.parent)),
    )


def _scorers(directory: Path, codec: TinyVAECodec) -> Subject:
    """Return the kind of the file of scorers; what was read of one is kept by its name, so each case has its own."""
    fitted = json.loads(FITTED.read_text())
    fitted["made"] = {**fitted["made"], "model": codec.model_fingerprint.weights}
    numbers = itertools.count()

    def read(data: bytes) -> None:
        path = directory / f"scorers-{next(numbers)}.json"
        path.write_bytes(data)
        try:
            codec.scorers = path
            file = fitted_file(codec)
            for name in SCORERS:
                profile_of(name, file)
                find_scorer(name, file)
        finally:
            path.unlink()

    return Subject("scorers", lambda chance: json_text(chance, fitted), read)
