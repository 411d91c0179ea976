"""The examples run as they stand, and what the repository says of itself agrees."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from kvcompress import __version__
from kvcompress.hf import load_model
from kvcompress.hf.forward import cache_name

ROOT = Path(__file__).parents[2]


def as_installed(code: str) -> str:
    """The name of a cache is that of the transformers at hand; later ones call it `cache`."""
    return code.replace("past_key_values=", f"{cache_name(load_model('reference-lm')[0])}=")


def test_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(as_installed((ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")), {"__name__": "__main__"})
    size, answer = capsys.readouterr().out.strip().splitlines()
    assert "times smaller" in size
    assert answer


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(as_installed("".join(cell["source"])), namespace)
    assert re.search(r"transparent +[\d,]+ bytes +KL 0\.0", capsys.readouterr().out)


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project["version"] == __version__
    assert f"\nversion: {__version__}\n" in citation
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
