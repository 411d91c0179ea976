"""Shared by all tests: offline, away from the user's own place, and the bundled model where a test needs a real one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
OWN_PLACE = tempfile.TemporaryDirectory(prefix="kvcompress-home-")
os.environ["KVCOMPRESS_HOME"] = OWN_PLACE.name  # a user's codecs are no matter of the tests, nor the other way round

if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # they share the cores; torch is not there yet
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // WORKERS, 1))

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sessions_file() -> Path:
    """Sessions recorded with the bundled model."""
    return ROOT / "examples" / "sessions.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
