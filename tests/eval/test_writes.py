"""The count of what a store writes."""

from __future__ import annotations

from eval.writes import table


def test_a_row_for_each_size_of_appends() -> None:
    small, large = (line.split("|") for line in table((2, 8), 4).splitlines()[2:])
    assert int(large[2].replace(",", "")) > 3 * int(small[2].replace(",", ""))
    assert float(small[4]) > float(large[4]) > 1
