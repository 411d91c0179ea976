"""The packages of kvcompress form one column, and few arrows lead down it."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.layers import layers_of

ROOT = Path(__file__).parents[2]
MOST_ROOMS, MOST_ARROWS = 16, 75
STORE, MOST_OF_STORE = "store", 9
"""Stored sessions are a room on top of the others: their arrows are counted apart, so that they hide none below."""


def test_rooms_and_arrows_are_few_and_none_leads_up() -> None:
    found = layers_of(ROOT)
    assert len(found.rooms) <= MOST_ROOMS
    of_store = {arrow for arrow in found.arrows if STORE in arrow}
    assert len(found.arrows - of_store) <= MOST_ARROWS
    assert len(of_store) <= MOST_OF_STORE
    assert not found.upward
    assert found.rooms[0] == "cli"


def test_an_arrow_upward_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "kvcompress"
    for name, text in {"one": "from kvcompress.two import x", "two": "def f():\n    import kvcompress.one"}.items():
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text(text)
    found = layers_of(tmp_path)
    assert found.arrows == {("one", "two"), ("two", "one")}
    assert len(found.upward) == 1
    assert next(reversed(list(found.lines()))) == "2 rooms, 2 arrows, 1 of them upward"


@pytest.mark.parametrize("room", ["format", "hf", "codec", "data", "metrics", "fit", "rate", "prune", "report", "cli"])
def test_every_room_says_what_it_is_for(room: str) -> None:
    first = (ROOT / "kvcompress" / room / "__init__.py").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith('"""')
    assert len(first) > 30
