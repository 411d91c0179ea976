"""No function of torch that MKL computes is called first by several threads at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvcompress.first_calls import FUNCTIONS

RECORD = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class Recorder(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor):
            print(function.overloadpacket.__name__, args[0].dtype, args[0].numel())
        return function(*args, **(kwargs or {{}}))

with Recorder():
    import {module}
"""


@pytest.mark.parametrize("module", ["kvcompress.hf", "kvcompress.snapshot"])
def test_each_function_is_first_called_with_one_number(module: str) -> None:
    command = [sys.executable, "-c", RECORD.format(module=module)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first: dict[tuple[str, str], int] = {}
    for line in told.splitlines():
        name, dtype, size = line.split()
        first.setdefault((name.removeprefix("special_"), dtype), int(size))
    missing = [name for name in FUNCTIONS for kind in ("32", "64") if first.get((name, f"torch.float{kind}")) != 1]
    assert missing == []
