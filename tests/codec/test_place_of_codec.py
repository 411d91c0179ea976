"""Law: a codec takes the place of a codec and of nothing else, and what lies beside it stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvcompress.codec.directory import load_codec, require_place_of_codec
from kvcompress.codec.pull import pull
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.fit.working import KEY, Working
from kvcompress.format.atomic_directory import sweep
from tests.format.killed import killed_after, killed_at_call

CALLS = [(os, name) for name in ("rename", "rmdir", "unlink", "mkdir")]


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_a_directory_of_other_things_is_refused_before_the_work(codec: TinyVAECodec, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "years.txt").write_text("of work")
    for refuse in (require_place_of_codec, lambda place: save_codec(codec, place)):
        with pytest.raises(InputError, match=r"holds other things than a codec, such as years\.txt"):
            refuse(tmp_path / "thesis")
    (tmp_path / "codec" / "recompute-2").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for place in ("codec", "empty", "absent"):
        require_place_of_codec(tmp_path / place)


def test_what_lies_beside_a_codec_stays_when_it_is_replaced(codec: TinyVAECodec, tmp_path: Path) -> None:
    place = tmp_path / "codec"
    save_codec(codec, place)
    (place / "recompute-2").mkdir()
    (place / "recompute-2" / "config.json").write_text("{}")
    (place / "fit.json").write_text("{}")
    before = names(place)
    save_codec(codec, place)
    assert names(place) == before
    assert load_codec(place).fingerprint == codec.fingerprint
    assert names(tmp_path) == ["codec"]


def test_killed_while_it_is_replaced_a_codec_loads(codec: TinyVAECodec, tmp_path: Path) -> None:
    place = tmp_path / "codec"
    save_codec(codec, place)
    for number in range(100):
        if not killed_at_call(number, CALLS, lambda: save_codec(codec, place)):
            break
        assert load_codec(place).fingerprint == codec.fingerprint
    else:
        pytest.fail("it never ended")
    assert killed_after(0.05, lambda: [save_codec(codec, place) for _ in range(1000)] and None)
    sweep(place)
    assert names(tmp_path) == ["codec"]


def test_a_working_directory_killed_while_it_is_removed_is_still_one(tmp_path: Path) -> None:
    for number in range(100):
        working = Working(tmp_path / "work", {"run": 1})
        for name in ("a", "b"):
            (tmp_path / "work" / f"{name}.safetensors").write_bytes(b"tensors")
        if not killed_at_call(number, CALLS, working.remove):
            break
        left = names(tmp_path / "work") if (tmp_path / "work").exists() else []
        assert not left or KEY in left
        Working(tmp_path / "work", {"run": 2})
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("file", ["notes.txt", "config.json"])
def test_a_copied_codec_takes_the_place_of_codecs_alone(tmp_path: Path, file: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / file).write_text('{"model_type":"llama"}')
    with pytest.raises(InputError, match="holds other things than a codec"):
        pull("reference-lm-tinyvae", tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / file).read_text() == '{"model_type":"llama"}'
    for force in (False, True):
        pull("reference-lm-tinyvae", tmp_path / "codec", force=force)


def test_a_codec_is_shown_in_one_line() -> None:
    assert repr(load_codec()).isprintable()
