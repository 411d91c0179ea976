"""Files and caches are worked on by the processor, whatever device a program has made torch's default."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function make its tensors on the processor where it does not say otherwise.

    After `torch.set_default_device("cuda")` they would come out beside what was read from a file, and meet it nowhere.
    """

    @functools.wraps(function)
    def placed(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return placed
