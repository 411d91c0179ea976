"""Settings of a file: typed, strict about what this version knows, and the same JSON as ever."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress.codec.settings import (
    MOST_QP,
    Certificate,
    CommonSettings,
    Int8Settings,
    OtherWeights,
    TinyVAESettings,
    restated,
    settings_of,
)
from kvcompress.errors import FormatError
from kvcompress.format.container import Encoded, from_bytes, load, read_header, to_bytes
from kvcompress.format.json_section import canonical_json

GOLDEN = Path(__file__).parents[1] / "format" / "golden"
KNOWN: dict[str, dict[str, Any]] = {
    "tinyvae": {
        "rate": 63,
        "residual_rate": 160,
        "recompute_layers": 2,
        "quality": "usable",
        "stored": "high",
        "unlike": True,
        "size_ratio": 20,
        "plan": "learned",
        "certificate": {"kl_nats": 0.009, "max_kl_nats": 0.01, "tail_tokens": 128},
        "other_weights": {"codec": "ab", "session": "cd", "sessions": 20, "kl_nats": 0.1, "top1_lost": 0},
    },
    "int8": {
        "shapes": [[3, 2, 4, 4], [1, 2, 4, 6]],
        "certificate": {"kl_nats": 0, "max_kl_nats": 1, "future_tokens": 9},
    },
    "lossless": {"quality": "transparent", "stored": "lossless"},
}


def file_of(kind: str, stated: dict[str, Any]) -> Encoded:
    return Encoded(kind, "", {}, "", 1, 2, stated, {})


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_settings_are_written_as_they_were_read(kind: str) -> None:
    """Integers stay integers too: the bytes of a header follow from it."""
    assert canonical_json(settings_of(file_of(kind, KNOWN[kind])).to_json()) == canonical_json(KNOWN[kind])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.kvz")), ids=lambda path: path.name)
def test_golden_files_say_nothing_that_is_lost(path: Path) -> None:
    encoded = load(path)
    typed = settings_of(encoded)
    assert settings_of(read_header(path)) == typed
    assert encoded.codec not in KNOWN or to_bytes(restated(encoded, typed)) == to_bytes(encoded)
    assert encoded.codec not in KNOWN or typed.to_json() == encoded.settings


numbers = st.one_of(st.integers(0, 2**53), st.floats(0, 1e300))
words = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=20)
certificates = st.builds(Certificate, kl_nats=numbers, max_kl_nats=numbers, tail_tokens=st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        TinyVAESettings,
        qp=st.integers(0, MOST_QP),
        residual_qp=st.none() | st.integers(0, MOST_QP),
        recompute_layers=st.integers(0, 90),
        quality=st.none() | words,
        stored=st.none() | words,
        unlike=st.booleans(),
        size_ratio=st.none() | numbers,
        plan=st.none() | words,
        certificate=st.none()
        | st.builds(Certificate, kl_nats=numbers, max_kl_nats=numbers, tail_tokens=st.integers(0, 9)),
        other_weights=st.none() | st.builds(OtherWeights, codec=words, session=words, kl_nats=st.none() | numbers),
    )
)
def test_what_is_stated_survives_a_file(stated: TinyVAESettings) -> None:
    assert settings_of(from_bytes(to_bytes(file_of("tinyvae", stated.to_json())))) == stated


ODD: list[tuple[str, dict[str, Any], str]] = [
    *[
        ("tinyvae", {"rate": qp}, "'rate'")
        for qp in (None, True, "9", 9.0, -1, MOST_QP + 1, 10**400, [9], float("nan"))
    ],
    *[("tinyvae", {"residual_rate": qp}, "'residual_rate'") for qp in (None, False, "9", MOST_QP + 1)],
    *[("tinyvae", {"recompute_layers": m}, "'recompute_layers'") for m in (True, -1, 0.5, 10**400, None)],
    *[("tinyvae", {"other_weights": one}, "'other_weights'") for one in (None, 3, {}, {"codec": "ab", "session": 3})],
    *[
        ("lossless", {name: word}, name)
        for name in ("quality", "stored", "plan")
        for word in (3, "", "\x1b[2J", "a" * 256)
    ],
    *[("lossless", {"unlike": flag}, "'unlike'") for flag in (1, "yes", None)],
    *[("lossless", {"size_ratio": ratio}, "'size_ratio'") for ratio in (True, "20", -1, float("inf"), 10**400)],
    *[
        ("lossless", {"certificate": one}, "'certificate'")
        for one in (None, [], {}, {"kl_nats": "\x1b", "max_kl_nats": 1})
    ],
    *[
        ("int8", {"shapes": runs}, "'shapes'")
        for runs in (None, {}, [[1, 2, 4]], [[1, 2, 4, -1]], [[1, 2, 4, 10**400]])
    ],
]


@pytest.mark.parametrize(("kind", "change", "told"), ODD, ids=str)
def test_a_setting_of_another_type_is_one_clear_error(kind: str, change: dict[str, Any], told: str) -> None:
    with pytest.raises(FormatError, match=told) as failure:
        settings_of(file_of(kind, KNOWN[kind] | change))
    assert str(failure.value).isprintable()
    assert len(str(failure.value)) < 200


@pytest.mark.parametrize(("kind", "name"), [("tinyvae", "rate"), ("int8", "shapes")])
def test_what_decoding_needs_may_not_be_missing(kind: str, name: str) -> None:
    stated = {key: value for key, value in KNOWN[kind].items() if key != name}
    with pytest.raises(FormatError, match=name):
        settings_of(file_of(kind, stated))


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_settings_of_later_versions_are_not_looked_at_and_not_lost(kind: str) -> None:
    later = KNOWN[kind] | {"colour": {"deep": [1, None]}}
    if "certificate" in later:
        later["certificate"] = later["certificate"] | {"by": "someone"}
    assert settings_of(file_of(kind, later)) == settings_of(file_of(kind, KNOWN[kind]))
    assert restated(file_of(kind, later), CommonSettings(quality="high")).settings["colour"] == {"deep": [1, None]}


def test_of_a_codec_that_is_not_known_nothing_is_believed() -> None:
    assert settings_of(file_of("demo", {"unlike": "perhaps", "quality": 3, "rate": -1})) == CommonSettings()


def test_settings_cannot_be_changed() -> None:
    stated = Int8Settings(shapes=((1, 2, 4, 4),))
    with pytest.raises(AttributeError):
        stated.quality = "high"  # type: ignore[misc]
    assert replace(stated, quality="high").to_json() == {"shapes": [[1, 2, 4, 4]], "quality": "high"}


def test_reading_settings_needs_no_torch() -> None:
    import subprocess

    program = "import sys, kvcompress.codec.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
