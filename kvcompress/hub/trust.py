"""Permission to run Python code that comes with a model: only by explicit option."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OPTION = "--trust-remote-code"
_trusted: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


def remote_code_is_trusted() -> bool:
    """Return whether the code of any model named within this context may be run."""
    return _trusted.get()


@contextmanager
def trusting_remote_code(trusted: bool = True) -> Iterator[None]:
    """Let models within the block run the code that comes with them; `--trust-remote-code` is this for a command."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)
