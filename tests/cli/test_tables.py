"""Tables stay readable in a pipe: nothing cut, nothing wrapped, nothing obeyed."""

from __future__ import annotations

import io

import pytest

from kvcompress.report.tables import Column, Row, Table, inline, markdown_table
from kvcompress.report.terminal import MOST_WRAPPED_ROWS, print_table

LONG = "word " * 100 + "end"


class Terminal(io.StringIO):
    """A terminal of 80 columns, or what says that it is one."""

    def isatty(self) -> bool:
        return True


def printed(file: io.StringIO, *args: object, **options: object) -> list[str]:
    print_table(*args, file=file, **options)  # type: ignore[arg-type]
    return file.getvalue().splitlines()


def test_a_pipe_gets_every_row_whole_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = printed(
        io.StringIO(), ("name", "bytes", "text"), [("a", "1,234", LONG), ("long name", "5", "x")], numbers=(1,)
    )
    assert lines == ["name       bytes  text", f"a          1,234  {LONG}", "long name      5  x"]


def test_a_terminal_wraps_and_loses_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = printed(Terminal(), ("name", "text"), [("a", LONG)])
    assert len(lines) > 10
    assert " ".join(lines).split().count("word") == 100
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)


def test_a_long_table_is_a_row_a_line_in_a_terminal_too() -> None:
    rows = [(str(index), "x") for index in range(MOST_WRAPPED_ROWS + 1)]
    assert len(printed(Terminal(), ("number", "text"), rows)) == len(rows) + 1


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_cells_are_shown_and_not_obeyed(file: type[io.StringIO]) -> None:
    (line,) = printed(file(), (), [("[bold]one[/bold] :smile:", "\x1b[31mtwo\nthree")])
    assert line.rstrip() == "[bold]one[/bold] :smile:  \\x1b[31mtwo\\nthree"


def test_wide_characters_keep_columns_below_each_other() -> None:
    lines = printed(io.StringIO(), (), [("缓存", "a"), ("four", "b")])
    assert lines == ["缓存  a", "four  b"]


def test_an_empty_table_prints_its_head() -> None:
    assert printed(io.StringIO(), ("a", "b"), []) == ["a  b"]
    assert printed(io.StringIO(), (), []) == []


def test_markdown_is_the_same_table_with_and_without_padding() -> None:
    head, rows = ("codec", "size"), [("one", "1"), ("three", "1,000")]
    plain, padded = markdown_table(head, rows), markdown_table(head, rows, padded=True)
    assert plain.splitlines() == ["| codec | size |", "| --- | ---: |", "| one | 1 |", "| three | 1,000 |"]
    assert padded.splitlines() == ["| codec |  size |", "|-------|------:|", "| one   |     1 |", "| three | 1,000 |"]


def test_a_table_of_texts_is_escaped() -> None:
    table = Table("", "", (Column("a|b", number=False), Column("c")), (Row(("x | *y*", "<1>")),))
    assert table.markdown().splitlines()[-1] == f"| {inline('x | *y*')} | &lt;1&gt; |"
    assert table.markdown().splitlines()[1] == "| --- | ---: |"
