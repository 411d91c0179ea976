"""The README's Python runs as it stands, and its tree and table are true."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kvcompress.hf import load_model
from kvcompress.hf.forward import cache_name

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("past_key_values=", f"{cache_name(load_model('reference-lm')[0])}="), namespace)
    assert os.path.getsize("session.kvz") > 0


@pytest.mark.parametrize("page", ["store"])
def test_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra store)")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    assert len(namespace) > 1


def test_every_local_link_of_the_documentation_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_results_table_is_filled() -> None:
    table = README.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    assert all(f"| {tier} |" in table for tier in ("transparent", "high", "usable"))
