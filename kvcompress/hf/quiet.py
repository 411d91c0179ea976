"""Silence the output of the libraries underneath."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from transformers import dynamic_module_utils as _dynamic_module_utils
from transformers.utils import logging as _logging

logging: Any = _logging  # carries no type annotations
dynamic_modules: Any = _dynamic_module_utils


@contextmanager
def silence(*, streams: bool = False) -> Iterator[None]:
    """Keep transformers from writing progress bars and warnings and from asking, and leave its settings as they were.

    It asks whether to run a model's code where some call inside it forgot to pass on that it may not; without seconds
    to wait for an answer it refuses at once.

    Args:
        streams: Take standard output and standard error away too, for code that writes to them directly.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    seconds, dynamic_modules.TIME_OUT_REMOTE_CODE = dynamic_modules.TIME_OUT_REMOTE_CODE, 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if streams:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        else:
            yield
    finally:
        dynamic_modules.TIME_OUT_REMOTE_CODE = seconds
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
