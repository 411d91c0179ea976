"""Silence the output of the libraries underneath."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from transformers.utils import logging as _logging

logging: Any = _logging  # carries no type annotations


@contextmanager
def silence(*, streams: bool = False) -> Iterator[None]:
    """Keep transformers from writing progress bars and warnings, and leave its settings as they were.

    Args:
        streams: Take standard output and standard error away too, for code that writes to them directly.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if streams:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        else:
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
