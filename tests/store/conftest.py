from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcompress.store.store import Store

MEMORY = Path("/dev/shm")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder where flushing costs nothing, if there is one: what a killed process wrote is there all the same."""
    if not MEMORY.is_dir():
        yield tmp_path / "store"
        return
    folder = Path(tempfile.mkdtemp(dir=MEMORY, prefix="kvcompress-test-"))
    yield folder / "store"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store(place, create=True) as found:
        yield found
