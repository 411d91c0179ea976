"""Fit a codec to sessions and verify its quality: closed form, calibration, checkpoints.

The package is called as well: `kv.fit(model, tokenizer, sessions, output)`, see `kvcompress.fit.from_sessions.fit`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _Called(ModuleType):
    """A package that is a function too: `kvcompress.fit` is both the package's name and the public call's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fit a codec to a model's sessions, see `kvcompress.fit.from_sessions.fit`."""
        return _fit()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """What `help` and editors show."""
        return inspect.signature(_fit())


def _fit() -> Any:
    from kvcompress.fit.from_sessions import fit

    return fit


sys.modules[__name__].__class__ = _Called
