"""Shared by all tests: offline, and the bundled model where a test needs a real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sessions_file() -> Path:
    """Sessions recorded with the bundled model."""
    return ROOT / "examples" / "sessions.jsonl"
