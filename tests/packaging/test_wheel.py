"""What is installed: exactly two packages, with the bundled checkpoints inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


BUNDLED = {"reference-lm", "reference-lm-tinyvae"}
FURTHER = "another-tinyvae"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a checkout that holds a further codec, which is in the index as all are."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("kvcompress", "tinyvae", "checkpoints"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "checkpoints" / "reference-lm-tinyvae", place / "checkpoints" / FURTHER)
    index = json.loads((place / "checkpoints" / "index.json").read_text())
    index |= {name.replace("reference-lm", "another"): digest for name, digest in index.items() if "tinyvae" in name}
    (place / "checkpoints" / "index.json").write_text(json.dumps(index))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(place.glob("*.whl")))


def test_wheel_holds_exactly_the_two_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kvcompress", "tinyvae"}


def test_wheel_brings_the_bundled_checkpoints(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for checkpoint in BUNDLED:
        assert f"kvcompress/checkpoints/{checkpoint}/model.safetensors" in names
        assert f"kvcompress/checkpoints/{checkpoint}/README.md" in names
    assert "kvcompress/checkpoints/index.json" in names
    assert "kvcompress/py.typed" in names
    assert "kvcompress/prune/scorers/fitted.json" in names


def test_wheel_holds_no_checkpoint_but_the_bundled_ones(wheel: zipfile.ZipFile) -> None:
    prefix = "kvcompress/checkpoints/"
    inside = [name.removeprefix(prefix) for name in wheel.namelist() if name.startswith(prefix)]
    assert {name.split("/")[0] for name in inside if "/" in name} == BUNDLED
    assert FURTHER in wheel.read(f"{prefix}index.json").decode()


def test_what_the_wheel_leaves_out_is_not_offered(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import kvcompress.hub.bundled as zoo, kvcompress.hub.places as places; "
        "print(zoo.checkpoint_root()); print(*zoo.bundled()); print(*(one.name for one in places.all_codecs()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    root, offered, codecs = done.stdout.splitlines()
    assert root == str(tmp_path / "kvcompress" / "checkpoints")
    assert {name.split("/")[0] for name in offered.split()} == BUNDLED
    assert "reference-lm-tinyvae" in codecs.split()
    assert FURTHER not in codecs
