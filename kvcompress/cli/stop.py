"""Ctrl-C: one line and exit status 130, wherever it comes."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


class Stop:
    """Remembers from now on that the user pressed Ctrl-C, for libraries catch it and raise something else."""

    def __init__(self) -> None:
        self.is_set = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.is_set = True
        raise KeyboardInterrupt

    def end_if_set(self) -> None:
        """End the program if the user pressed Ctrl-C."""
        if self.is_set:
            self.end()

    @staticmethod
    def end() -> NoReturn:
        """Say so and end the program; turns, segments and shards that were finished before stay."""
        sys.stderr.write("error: interrupted. Nothing is half-written.\n")
        sys.exit(130)
