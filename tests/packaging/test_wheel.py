"""What is installed: exactly two packages, with the bundled checkpoints inside."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(place.glob("*.whl")))


def test_wheel_holds_exactly_the_two_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kvcompress", "tinyvae"}


def test_wheel_brings_the_bundled_checkpoints(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for checkpoint in ("reference-lm", "reference-lm-tinyvae"):
        assert f"kvcompress/checkpoints/{checkpoint}/model.safetensors" in names
        assert f"kvcompress/checkpoints/{checkpoint}/README.md" in names
    assert "kvcompress/checkpoints/index.json" in names
    assert "kvcompress/py.typed" in names
    assert "kvcompress/prune/fitted.json" in names
