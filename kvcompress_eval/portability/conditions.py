"""What a condition is: everything about a process that may move the last bit of its arithmetic.

A second computer is rarely at hand, but much of what makes it differ can be asked for here: another number of threads
sums in another order, a coarser matrix product or another data type rounds elsewhere, and the portable instruction set
stands for an older processor. Each condition runs in a process of its own, because most of this is fixed at start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from kvcompress.errors import InputError

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("highest", "high", "medium")
INSTRUCTIONS = ("native", "portable")
MOST_THREADS = 2

# Relative error of a matrix product at each precision of torch: float32 sums, then 11 and 8 significant bits (TF32 and
# bfloat16 products), each with a margin of about two.
ROUNDING_TOLERANCE = {"highest": 1e-5, "high": 1e-3, "medium": 1e-2}

# Read by torch's own kernels, by MKL and by oneDNN when they are loaded.
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it torch refuses deterministic products on CUDA
OWN_VARIABLES = frozenset(
    {*PORTABLE, *CUBLAS, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"}
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to run the same program.

    Attributes:
        device: Where the model runs; the codec always runs on the CPU.
        dtype: Data type of the model, and so of the cache that it records.
        threads: Threads of torch, 1 or 2.
        precision: Precision of torch's float32 matrix products.
        deterministic: Whether torch may use deterministic algorithms only.
        instructions: "native", or "portable" for what every 64-bit x86 processor has.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    precision: str = "highest"
    deterministic: bool = False
    instructions: str = "native"

    def __post_init__(self) -> None:
        """Refuse what is no condition."""
        known = {"device": DEVICES, "dtype": DTYPES, "precision": PRECISIONS, "instructions": INSTRUCTIONS}
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"unknown {name} {getattr(self, name)!r}", f"Use one of {', '.join(allowed)}")
        if type(self.threads) is not int or not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"{self.threads!r} threads are no condition", f"Use 1 to {MOST_THREADS}")
        if type(self.deterministic) is not bool:
            raise InputError(f"deterministic must be true or false, not {self.deterministic!r}")

    @property
    def label(self) -> str:
        """Its name in tables: device, data type, threads, and every departure from torch's defaults."""
        parts = [self.device, self.dtype, f"{self.threads}t"]
        parts += [self.precision] if self.precision != "highest" else []
        parts += ["deterministic"] if self.deterministic else []
        parts += ["portable"] if self.instructions == "portable" else []
        return " ".join(parts)

    @property
    def rounding_tolerance(self) -> float:
        """How far, relative to the largest latent, its float arithmetic may lie from the reference's."""
        return ROUNDING_TOLERANCE[self.precision]

    def to_text(self) -> str:
        """Return it as one line of JSON; `from_text` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Condition:
        """Rebuild a condition, raising `InputError` where the text is none."""
        try:
            return cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            wanted = ", ".join(field.name for field in fields(cls))
            raise InputError(f"not a condition ({error})", f"It is a JSON object of {wanted}") from error

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of its process: what is inherited, but the condition alone decides on arithmetic."""
        kept = {name: value for name, value in inherited.items() if name not in OWN_VARIABLES}
        kept |= PORTABLE if self.instructions == "portable" else {}
        return kept | (CUBLAS if self.deterministic else {})


REFERENCE = Condition()
"""What all others are compared with: float32 on one thread of the CPU."""


def apply(condition: Condition) -> dict[str, Any]:
    """Set torch up as a condition says, before any work, and return what is then in force.

    Raises:
        InputError: The condition needs a CUDA device and there is none.
    """
    import torch

    if condition.device == "cuda" and not torch.cuda.is_available():
        raise InputError(why_no_cuda(), "Leave the CUDA conditions out")
    torch.set_num_threads(condition.threads)
    torch.set_float32_matmul_precision(condition.precision)
    torch.use_deterministic_algorithms(condition.deterministic)
    name = torch.cuda.get_device_name() if condition.device == "cuda" else "cpu"
    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "device": name}


def why_no_cuda() -> str:
    """Return in one line why no CUDA device can be used here."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return f"torch {torch.__version__} finds no CUDA device"


def conditions_at_hand(*, cuda: bool) -> list[Condition]:
    """Return the reference, each single departure from it, and all departures at once; then the same on CUDA.

    Every combination would be 96 conditions and 9,216 pairs; what combinations could add is covered by the last one.
    """
    found = [
        REFERENCE,
        replace(REFERENCE, threads=2),
        replace(REFERENCE, precision="high"),
        replace(REFERENCE, precision="medium"),
        replace(REFERENCE, deterministic=True),
        replace(REFERENCE, instructions="portable"),
        replace(REFERENCE, dtype="bfloat16"),
        Condition("cpu", "bfloat16", 2, "medium", True, "portable"),
    ]
    if cuda:
        on_cuda = replace(REFERENCE, device="cuda")
        departures: tuple[dict[str, Any], ...] = (
            {},
            {"precision": "high"},
            {"deterministic": True},
            {"dtype": "bfloat16"},
        )
        found += [replace(on_cuda, **departure) for departure in departures]
    return found
