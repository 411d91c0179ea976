"""The generators of RULER in the package lm_eval, called with a state of chance of their own.

After "RULER: What's the Real Context Size of Your Long-Context Language Models?" (Hsieh et al., arXiv 2404.06654).
Those of variable tracking and of frequent words need nothing but the package; that of needles would fetch data.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kvcompress.errors import InputError


def generator(module: str) -> Any:
    """Return a module of lm_eval's RULER.

    Raises:
        InputError: The package is not installed.
    """
    try:
        return importlib.import_module(f"lm_eval.tasks.ruler.{module}")
    except ImportError as error:
        remedy = 'pip install "kvcompress[eval]", or name other tasks with --task'
        raise InputError(f"the package lm_eval is missing ({error})", remedy) from error


@contextmanager
def seeded(chance: random.Random) -> Iterator[None]:
    """Let the global sources of chance, which the generators draw from, follow `chance`; then give them back."""
    before, arrays = random.getstate(), np.random.get_state()
    random.seed(chance.getrandbits(64))
    np.random.seed(chance.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)
