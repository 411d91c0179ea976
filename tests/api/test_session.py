"""The front door: a session saved and loaded in one call each, and what is refused there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextStreamer

import kvcompress as kv
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.errors import CheckpointError, InputError, KVCompressError, MismatchError
from kvcompress.hf.forward import cache_name
from tests.codec.conftest import tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "sessions.jsonl"


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    return kv.load_model("reference-lm")


@pytest.fixture(scope="module")
def ids(bundled: tuple[Any, Any]) -> torch.Tensor:
    session = next(iter(read_sessions(EXAMPLES)))
    return torch.tensor(session_token_ids(session, bundled[1])[:300])


@pytest.fixture(scope="module")
def saved(bundled: tuple[Any, Any], ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("front") / "s.kvz"
    kv.save_session(path, bundled[0], ids, quality="high")
    return path


def goes_on(model: Any, cache: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    """The tokens of `generate` from a cache that has seen all of `ids` but the last."""
    name = cache_name(model)
    found: torch.Tensor = model.generate(ids[None], **{name: cache}, max_new_tokens=16, do_sample=False, **more)
    return found[0, len(ids) :]


def test_a_session_is_saved_and_goes_on_as_if_nothing_had_happened(
    bundled: tuple[Any, Any], ids: torch.Tensor, tmp_path: Path
) -> None:
    model, tokenizer = bundled
    written = kv.save_session(tmp_path / "s.kvz", model, ids[:-1], tokenizer=tokenizer)
    assert written.file_bytes == (tmp_path / "s.kvz").stat().st_size
    assert written.size_ratio == pytest.approx(kv.capture(model, ids[:-1]).raw_bytes / written.file_bytes)
    cache = kv.load_session(tmp_path / "s.kvz", model, tokenizer=tokenizer)
    exact = kv.restore(kv.capture(model, ids[:-1]), model)
    assert goes_on(model, cache, ids).tolist() == goes_on(model, exact, ids).tolist()


def test_generate_streams_and_assists_from_a_loaded_session(
    bundled: tuple[Any, Any], ids: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = bundled
    kv.save_session(tmp_path / "s.kvz", model, ids[:-1], lossless=True)
    plain = goes_on(model, kv.load_session(tmp_path / "s.kvz", model), ids)
    streamed = goes_on(
        model, kv.load_session(tmp_path / "s.kvz", model), ids, streamer=TextStreamer(tokenizer, skip_prompt=True)
    )
    said = capsys.readouterr().out
    assisted = goes_on(model, kv.load_session(tmp_path / "s.kvz", model), ids, prompt_lookup_num_tokens=3)
    assert plain.tolist() == streamed.tolist() == assisted.tolist()
    assert tokenizer.decode(plain, skip_special_tokens=True).strip()[:8] in said


def test_a_cache_grown_elsewhere_is_stored(bundled: tuple[Any, Any], ids: torch.Tensor, tmp_path: Path) -> None:
    model = bundled[0]
    cache = kv.restore(kv.capture(model, ids), model)
    kv.save_session(tmp_path / "s.kvz", model, ids, cache=cache, lossless=True)
    loaded = kv.load_session(tmp_path / "s.kvz", model)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(cache.layers, loaded.layers, strict=True))


@pytest.mark.parametrize(
    ("target", "codec"),
    [({"quality": "usable"}, "tinyvae"), ({"size_ratio": 40.0}, "tinyvae"), ({"max_kl": 0.01}, "tinyvae")],
)
def test_every_target_makes_a_file_that_says_it(
    bundled: tuple[Any, Any], ids: torch.Tensor, tmp_path: Path, target: dict[str, Any], codec: str
) -> None:
    kv.save_session(tmp_path / "s.kvz", bundled[0], ids, **target)
    encoded = kv.Encoded.load(tmp_path / "s.kvz")
    assert encoded.codec == codec
    stated = {"max_kl": encoded.settings.get("certificate", {}).get("max_kl_nats"), **encoded.settings}
    assert {name: stated[name] for name in target} == target


def test_encoded_is_an_object_for_a_database(saved: Path) -> None:
    encoded = kv.Encoded.load(saved)
    assert encoded.to_bytes() == saved.read_bytes()
    assert kv.Encoded.from_bytes(saved.read_bytes()) == encoded
    encoded.save(saved.with_name("again.kvz"))
    assert saved.with_name("again.kvz").read_bytes() == saved.read_bytes()


def test_a_codec_encodes_at_a_quality(bundled: tuple[Any, Any], ids: torch.Tensor, saved: Path) -> None:
    codec = kv.AutoCodec.from_pretrained("reference-lm-tinyvae", 0)
    snapshot = kv.capture(bundled[0], ids)
    assert codec.encode(snapshot, quality="high").to_bytes() == saved.read_bytes()


@pytest.mark.parametrize("arguments", [{}, {"qp": 40, "quality": "high"}, {"qp": "high"}, {"qp": True}])
def test_a_codec_says_what_it_needs(bundled: tuple[Any, Any], ids: torch.Tensor, arguments: dict[str, Any]) -> None:
    codec = kv.load_codec()
    with pytest.raises(InputError, match=r"quality|integer"):
        codec.encode(kv.capture(bundled[0], ids[:40]), **arguments)


def test_one_line_says_what_an_object_is(bundled: tuple[Any, Any], ids: torch.Tensor, saved: Path) -> None:
    snapshot = kv.capture(bundled[0], ids)
    for one in (snapshot, snapshot.layers[0], kv.load(saved)):
        assert "\n" not in repr(one)
        assert len(repr(one)) < 120
    assert "300 tokens" in repr(snapshot)


def test_dir_is_the_public_names() -> None:
    assert sorted(dir(kv)) == sorted(kv.__all__)
    for name in kv.__all__:
        assert getattr(kv, name) is not None


def test_nothing_is_printed_on_import_and_load(saved: Path) -> None:
    program = f"""
import kvcompress as kv
model, tokenizer = kv.load_model("reference-lm")
kv.load_codec("reference-lm-tinyvae")
kv.load_session({str(saved)!r}, model)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# -- bad input


@pytest.mark.parametrize(
    "options",
    [
        {"quality": "high", "size_ratio": 20.0},
        {"quality": "high", "lossless": True},
        {"max_kl": 0.01, "lossless": True},
        {"quality": "splendid"},
        {"max_kl": -1.0},
        {"max_kl": float("nan")},
        {"size_ratio": 0.0},
        {"recompute_layers": -1},
        {"recompute_layers": 99},
        {"lossless": True, "recompute_layers": 1},
        {"codec": "no-such-codec"},
        {"plan": kv.PlanOptions(scorers=("nobody",))},
        {"plan": kv.PlanOptions(guarantees=("number",))},
    ],
)
def test_impossible_options_are_refused_and_nothing_is_written(
    bundled: tuple[Any, Any], ids: torch.Tensor, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises((InputError, CheckpointError)):
        kv.save_session(tmp_path / "s.kvz", bundled[0], ids[:100], **options)
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_overwritten_unasked(bundled: tuple[Any, Any], ids: torch.Tensor, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(InputError, match="exists"):
        kv.save_session(saved, bundled[0], ids[:50])
    assert saved.read_bytes() == before


def test_a_model_without_a_codec_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kvcompress fit"):
        kv.save_session(tmp_path / "s.kvz", tiny_model(), [1, 2, 3])
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(MismatchError):
        kv.load_session(saved, tiny_model())


def test_a_file_of_a_codec_that_is_not_at_hand_says_so(saved: Path, tmp_path: Path, bundled: tuple[Any, Any]) -> None:
    from dataclasses import replace

    strange = replace(kv.load(saved), codec_fingerprint="ab" * 32)
    strange.save(tmp_path / "strange.kvz")
    with pytest.raises(MismatchError, match="none at hand"):
        kv.load_session(tmp_path / "strange.kvz", bundled[0])


@pytest.mark.parametrize("path", ["missing.kvz", "."])
def test_no_file_is_one_clear_line(bundled: tuple[Any, Any], tmp_path: Path, path: str) -> None:
    with pytest.raises(KVCompressError) as failure:
        kv.load_session(tmp_path / path, bundled[0])
    assert "\n" not in str(failure.value)


def test_swapped_arguments_are_noticed(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="path first"):
        kv.save(kv.load(saved), str(tmp_path / "s.kvz"))  # type: ignore[arg-type]


@pytest.mark.parametrize("token_ids", [[[1, 2]], ["a"], [1.5], [-1], [10**9], None])
def test_tokens_that_are_none_are_refused(bundled: tuple[Any, Any], tmp_path: Path, token_ids: Any) -> None:
    with pytest.raises(InputError):
        kv.save_session(tmp_path / "s.kvz", bundled[0], token_ids)
    assert not list(tmp_path.iterdir())
