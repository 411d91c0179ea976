"""Progress of work of unknown length: the current stage, and the seconds so far."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvcompress.cli.console import LINE_SECONDS

Stage = Callable[[str], None]


@contextmanager
def waiting(title: str, first: str) -> Iterator[Stage]:
    """Show on standard error what is being done until the block ends, and give the function that names the next stage.

    A terminal shows a moving bar with the seconds so far, which goes away at the end. Anything else gets a line every
    `LINE_SECONDS`; work that is done sooner says nothing.

    Args:
        title: Of the command.
        first: The first stage, such as "loading the model".
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(f"{title}: {first}", total=None)
            yield lambda stage: bars.update(task, description=f"{title}: {stage}")
        return
    lines = _Lines(title, first)
    try:
        yield lines.begin
    finally:
        lines.end()


class _Lines:
    """Writes a line now and then from a thread of its own, for the work itself does not return in between."""

    def __init__(self, title: str, stage: str) -> None:
        self._title, self._stage, self._begun = title, stage, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, stage: str) -> None:
        self._stage = stage

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LINE_SECONDS):
            seconds = time.monotonic() - self._begun
            sys.stderr.write(f"{self._title}: {self._stage}, {seconds:.0f} s so far\n")
            sys.stderr.flush()
