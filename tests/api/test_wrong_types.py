"""Whatever is given at the front door by mistake is refused in one line that says what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import kvcompress as kv
from kvcompress.errors import KVCompressError

anything: Any = kv

MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "model by number": (lambda: anything.load_model(5), "a model is named by a text"),
    "model by nothing": (lambda: anything.load_model(None), "not by NoneType"),
    "dtype in a list": (lambda: anything.load_model("reference-lm", dtype=["float32"]), "unknown dtype"),
    "codec by number": (lambda: anything.load_codec(5), "a codec is named by a text"),
    "codec by bytes": (lambda: anything.load_codec(b"x"), "not by bytes"),
    "codec by a name too long": (lambda: kv.load_codec("x" * 300), "no codec has such a name"),
    "codec by a name with NUL": (lambda: kv.load_codec("a\0b"), "no codec has such a name"),
    "file by nothing": (lambda: anything.load(None), "a file is named by a text"),
    "file by a descriptor": (lambda: anything.load(0), "not by int"),
    "content as text": (lambda: anything.Encoded.from_bytes("x"), "content is bytes, not str"),
    "content of nothing": (lambda: anything.Encoded.from_bytes(None), "content is bytes, not NoneType"),
    "session by number": (lambda: anything.load_session(5, None), "a session is named by a text"),
    "no model": (lambda: anything.capture(None, [1]), "a model is wanted, not NoneType"),
    "model and tokenizer": (lambda: anything.capture((None, None), [1]), "give the first of the two"),
    "no snapshot": (lambda: anything.restore("session.kvz", None), "kv.load_session"),
    "a ratio beyond floats": (lambda: kv.EncodeOptions(size_ratio=10**400), "that a float can hold"),
    "lossless as a word": (lambda: anything.EncodeOptions(lossless="yes"), "True or False, not 'yes'"),
    "a KL that is none": (lambda: kv.EncodeOptions(max_kl=float("nan")), "positive number"),
    "two targets": (lambda: kv.EncodeOptions(quality="high", size_ratio=20), "exclude each other"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, told = MISTAKES[name]
    with pytest.raises(KVCompressError, match=told) as caught:
        call()
    assert str(caught.value).isprintable()


def test_a_session_of_no_model_is_not_stored(tmp_path: Any) -> None:
    with pytest.raises(KVCompressError, match="a model is wanted"):
        kv.save_session(tmp_path / "a.kvz", anything.load, torch.arange(3))
    assert not list(tmp_path.iterdir())
