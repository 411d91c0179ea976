"""`kv.plan` and `kv.fit`: what the command line does, from objects in memory, and what is refused there."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kvcompress as kv
from kvcompress.cli.app import app
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.errors import CheckpointError, InputError, KVCompressError
from kvcompress.fit.settings import FitSettings
from kvcompress.format.raw_snapshot import save_raw
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import random_sessions, tiny_model

QUICK = kv.PlanOptions(search=False)
EXAMPLES = Path(__file__).parents[2] / "examples" / "sessions.jsonl"
SMALL = FitSettings(rank=24, prior_rank=8, prior_taps=2, fisher_sessions=2, continuation_tokens=16)


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    return kv.load_model("reference-lm")


@pytest.fixture(scope="module")
def snapshot(bundled: tuple[Any, Any]) -> KVSnapshot:
    model, tokenizer = bundled
    ids = session_token_ids(next(iter(read_sessions(EXAMPLES))), tokenizer)
    return kv.capture(model, ids[:200], tokenizer=tokenizer)


# -- plans


def test_a_plan_is_what_the_command_line_would_write(
    bundled: tuple[Any, Any], snapshot: KVSnapshot, tmp_path: Path
) -> None:
    found = kv.plan(snapshot, *bundled, quality="high", options=QUICK)
    encoded = kv.encode(snapshot, kv.EncodeOptions(plan=found)).encoded
    save_raw(tmp_path / "raw.safetensors", snapshot)
    command = ["encode", str(tmp_path / "raw.safetensors"), "-o", str(tmp_path / "a.kvz")]
    assert CliRunner().invoke(app, [*command, "--plan", "quick", "--quality", "high"]).exit_code == 0
    assert encoded.to_bytes() == (tmp_path / "a.kvz").read_bytes()
    assert found.file_bytes == (tmp_path / "a.kvz").stat().st_size
    assert found.tiers.shape == (snapshot.tokens,)
    assert sum(found.table.counts().values()) == snapshot.tokens
    assert found.scorer == encoded.settings["plan"] == "learned"
    assert "\n" not in repr(found)


def test_a_plan_is_of_its_session_alone(bundled: tuple[Any, Any], snapshot: KVSnapshot) -> None:
    found = kv.plan(snapshot, bundled[0], size_ratio=60.0, options=kv.PlanOptions(search=False, scorers=["key_norm"]))
    again = kv.capture(bundled[0], snapshot.token_ids, tokenizer=bundled[1])
    assert found.encode(again).encoded is found.encoding.encoded
    with pytest.raises(InputError, match="another session"):
        kv.encode(kv.capture(bundled[0], snapshot.token_ids[:90]), kv.EncodeOptions(plan=found))
    with pytest.raises(InputError, match="target"):
        kv.EncodeOptions(plan=found, quality="high")
    with pytest.raises(InputError, match="target"):
        kv.EncodeOptions(plan=found, lossless=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quality": "high", "size_ratio": 20.0}, "exclude each other"),
        ({"quality": "high", "max_kl": 0.01}, "exclude each other"),
        ({"max_kl": 0.01, "size_ratio": 20.0}, "exclude each other"),
        ({"max_kl": 0.01, "options": QUICK}, "measuring"),
        ({"quality": 3}, "a word"),
        ({"size_ratio": "20"}, "positive number"),
        ({"max_kl": True}, "positive number"),
        ({"quality": "splendid"}, "splendid"),
        ({"options": {"search": False}}, "PlanOptions"),
        ({"options": kv.PlanOptions(scorers=["nobody"])}, "unknown scorer"),
        ({"options": kv.PlanOptions(guarantees=["number"])}, "KIND=TIER"),
        ({"codec": "no-such-codec"}, "no-such-codec"),
    ],
)
def test_impossible_plans_are_one_clear_line(
    bundled: tuple[Any, Any], snapshot: KVSnapshot, options: dict[str, Any], told: str
) -> None:
    with pytest.raises((InputError, CheckpointError), match=told) as failure:
        kv.plan(snapshot, *bundled, **options)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scorers": "learned"}, "list of texts"),
        ({"scorers": None}, "list of texts"),
        ({"keep": [3]}, "list of texts"),
        ({"keep_messages": [True]}, "list of integers"),
        ({"keep_fraction": 2.0}, "keep fraction"),
        ({"keep_fraction": "half"}, "keep fraction"),
    ],
)
def test_options_of_another_type_are_one_clear_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as failure:
        kv.PlanOptions(**options)
    assert "\n" not in str(failure.value)


def test_swapped_arguments_of_a_plan_are_noticed(bundled: tuple[Any, Any], snapshot: KVSnapshot) -> None:
    with pytest.raises(InputError, match="then the model"):
        kv.plan(bundled[0], snapshot)
    with pytest.raises(InputError, match="EncodeOptions"):
        kv.encode(snapshot, "high")  # type: ignore[arg-type]


def test_a_plan_for_a_model_without_a_codec_says_how_to_get_one() -> None:
    model = tiny_model(5)
    with pytest.raises(InputError, match="kvcompress fit"):
        kv.plan(kv.capture(model, [1, 2, 3]), model)


# -- fits


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> kv.FittedCodec:
    place = tmp_path_factory.mktemp("fit") / "codec"
    return kv.fit(tiny_model(), None, random_sessions(12, 96), place, settings=SMALL)


def test_a_codec_is_fitted_to_token_ids_and_used(fitted: kv.FittedCodec, tmp_path: Path) -> None:
    model = tiny_model()
    assert fitted.fingerprint == kv.load_codec(fitted.path).fingerprint
    assert fitted.tokens > 0
    assert fitted.file_bytes == (fitted.path / "model.safetensors").stat().st_size
    assert not fitted.promises  # 12 sessions keep 3 apart: too few
    assert any("no quality is promised" in note for note in fitted.notes)
    ids = random_sessions(1, 60, seed=9)[0]
    kv.save_session(tmp_path / "s.kvz", model, ids, codec=fitted.path, size_ratio=5.0)
    assert kv.load_session(tmp_path / "s.kvz", model, codec=fitted.path).get_seq_length() == 60
    assert not fitted.path.with_name("codec.fit").exists()


def test_lists_of_numbers_fit_the_same_codec(fitted: kv.FittedCodec, tmp_path: Path) -> None:
    sessions = [ids.tolist() for ids in random_sessions(12, 96)]
    again = kv.fit(tiny_model(), None, sessions, tmp_path / "codec", settings=SMALL)
    assert again.fingerprint == fitted.fingerprint


def test_messages_and_their_file_fit_the_same_codec(bundled: tuple[Any, Any], tmp_path: Path) -> None:
    sessions = [session.messages for session in read_sessions(EXAMPLES)][:6]
    lines = EXAMPLES.read_text().splitlines()[:6]
    (tmp_path / "sessions.jsonl").write_text("\n".join(lines))
    settings = FitSettings(rank=12, prior_rank=4, prior_taps=1, fisher_sessions=1, continuation_tokens=16)
    one = kv.fit(*bundled, sessions, tmp_path / "one", tokens=48, settings=settings)
    two = kv.fit(*bundled, tmp_path / "sessions.jsonl", tmp_path / "two", tokens=48, settings=settings)
    assert one.fingerprint == two.fingerprint


def test_a_codec_is_not_overwritten_unasked(fitted: kv.FittedCodec) -> None:
    before = (fitted.path / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds a codec"):
        kv.fit(tiny_model(), None, random_sessions(12, 96), fitted.path, settings=SMALL)
    assert (fitted.path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("sessions", "told"),
    [
        ([], "no session"),
        ([[]], "no session"),
        ([[1, 2, 3]], "too few"),
        (3, "a file or a list"),
        (None, "a file or a list"),
        (["hello"], "session 0"),
        ([[1, 2], [1.5]], "session 1"),
        ([[10**9]], "session 0"),
        ([None], "session 0"),
        ([[{"role": "user", "content": "hello"}]], "tokenizer"),
        ("no-such-file.jsonl", "tokenizer"),
    ],
)
def test_sessions_that_are_none_are_refused_and_nothing_is_written(tmp_path: Path, sessions: Any, told: str) -> None:
    with pytest.raises(KVCompressError, match=told) as failure:
        kv.fit(tiny_model(), None, sessions, tmp_path / "codec", settings=SMALL)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "codec").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 1},
        {"tokens": "many"},
        {"settings": {"rank": 3}},
        {"settings": SMALL, "recompute_layers": 1},
        {"recompute_layers": 99},
        {"recompute_layers": -1},
    ],
)
def test_impossible_fits_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as failure:
        kv.fit(tiny_model(), None, random_sessions(12, 96), tmp_path / "codec", **options)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "codec").exists()


def test_messages_without_content_are_refused(bundled: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="session 0 has a message"):
        kv.fit(*bundled, [[{"role": "user"}]], tmp_path / "codec")


def test_a_file_that_is_not_there_is_named(bundled: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-file"):
        kv.fit(*bundled, tmp_path / "no-such-file.jsonl", tmp_path / "codec")


def test_a_name_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kv\.load_model"):
        kv.fit("reference-lm", None, [[1, 2]], tmp_path / "codec")  # type: ignore[arg-type]


def test_the_call_and_the_package_are_one_object() -> None:
    """`kvcompress.fit` is a package: whatever was imported before, `kv.fit` can be called."""
    from kvcompress import fit
    from kvcompress.fit.run import fit_checkpoint

    assert fit is kv.fit
    assert callable(kv.fit)
    assert list(inspect.signature(kv.fit).parameters)[:4] == ["model", "tokenizer", "sessions", "output"]
    assert callable(fit_checkpoint)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    kv.fit(tiny_model(), None, random_sessions(6, 64), tmp_path / "codec", settings=SMALL)
    assert capsys.readouterr() == ("", "")
