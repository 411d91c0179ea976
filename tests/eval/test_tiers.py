"""The README's table is computed from rows and written between its marks, nothing else of the file is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.tiers import markdown, summarise, write_between_marks


def row(file_bytes: int, kl_nats: float, worth: float) -> dict[str, float]:
    return {
        "file_bytes": file_bytes,
        "raw_bytes": 1000,
        "kl_nats": kl_nats,
        "context_worth_nats": worth,
        "top1_agreement": 0.5,
        "ppl_ratio": 1.0,
        "asked": 2,
        "exact": 1,
        "exact_uncompressed": 2,
    }


def test_summary_takes_ratios_of_sums() -> None:
    found = summarise([row(10, 0.1, 1.0), row(30, 0.3, 3.0)])
    assert found["size_ratio"] == pytest.approx(2000 / 40)
    assert found["smallest_size_ratio"] == pytest.approx(1000 / 30)
    assert found["context_lost"] == pytest.approx(0.4 / 4.0)
    assert (found["asked"], found["recalled"], found["recalled_uncompressed"]) == (4, 2, 4)


def test_table_has_a_row_a_tier_and_names_its_command() -> None:
    table = markdown({"transparent": summarise([row(10, 0.1, 1.0)])}, 1024)
    assert "| transparent | 100.0 | 0.1000 |" in table
    assert "python -m eval tiers" in table


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    write_between_marks(page, "new\n")
    assert page.read_text() == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"
