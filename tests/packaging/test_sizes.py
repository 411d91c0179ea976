"""Files have one purpose and functions fit a screen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 350, 60


def sources() -> Iterator[Path]:
    for package in ("kvcompress", "tinyvae", "kvcompress_train", "kvcompress_eval", "train", "eval"):
        yield from (ROOT / package).rglob("*.py")


def test_no_file_and_no_function_is_long() -> None:
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path}: {node.name}"
