"""Find tasks by name, and make their examples."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

from kvcompress.errors import InputError
from kvcompress_eval.tasks.protocol import Example, Task

TASKS = (
    "key_value",
    "needles",
    "variable_tracking",
    "frequent_words",
    "many_fields",
    "planted_facts",
    "instruction_survival",
)
"""Modules of this room; each holds one task as `TASK`."""


def find_tasks(names: Iterable[str]) -> list[Task]:
    """Return the tasks of some names, each once; all where there are no names.

    Raises:
        InputError: There is no task of a name.
    """
    wanted = list(dict.fromkeys(name.replace("-", "_") for name in names)) or list(TASKS)
    for name in wanted:
        if name not in TASKS:
            raise InputError(f"unknown task {name!r}", f"Known are {', '.join(TASKS)}")
    return [importlib.import_module(f"kvcompress_eval.tasks.{name}").TASK for name in wanted]


def examples(task: Task, size: int, count: int, tokenizer: Any, part: str) -> Iterator[Example]:
    """Yield the first examples of a size; the same ones every time.

    Args:
        task: Whose.
        size: Of each.
        count: How many.
        tokenizer: The model's.
        part: "measure", or "calibrate" for others than those that are measured.
    """
    for number in range(count):
        yield task.make(random.Random(f"{part} {task.name} {size} {number}"), size, tokenizer)
