"""Stops a run that has gone astray, and says how: NaN, a collapsed code, an exploding rate."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.callbacks import Callback

from kvcompress.errors import KVCompressError

PATIENCE_STEPS = 50
RATE_FACTOR = 2.0
COLLAPSED_SHARE = 0.02


class TrainingError(KVCompressError):
    """A run that would not have come to anything."""


class Guard(Callback):
    """Watches loss, bits, and what halving the step would add to them.

    What is usual is the mean of the first `PATIENCE_STEPS` steps, which start from the closed form: after as many more,
    running means that leave it by far end the run.
    """

    def __init__(self) -> None:
        self.seen, self.start_bits, self.bits, self.octave, self.start_octave = 0, 0.0, 0.0, 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at one step."""
        found = pl_module.last
        self.check(found["loss"], found["bits"], found["octave"])

    def check(self, loss: float, bits: float, octave: float) -> None:
        """Take one step's figures.

        Raises:
            TrainingError: The run has gone astray.
        """
        lower = "Lower learning_rate and synthesis_rate in the recipe"
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} after {self.seen} steps", lower)
        self.seen += 1
        if self.seen <= PATIENCE_STEPS:
            self.start_bits += bits / PATIENCE_STEPS
            self.start_octave += octave / PATIENCE_STEPS
            self.bits, self.octave = self.start_bits, self.start_octave
            return
        self.bits += (bits - self.bits) / PATIENCE_STEPS
        self.octave += (octave - self.octave) / PATIENCE_STEPS
        if self.seen < 2 * PATIENCE_STEPS:
            return
        if self.bits > RATE_FACTOR * self.start_bits:
            what = f"the rate explodes: {self.bits:.0f} bits a token where the closed form has {self.start_bits:.0f}"
            raise TrainingError(what, lower)
        if self.octave < COLLAPSED_SHARE * self.start_octave:
            added = f"halving the step adds {self.octave:.2g} bits a token, {self.start_octave:.2g} at first"
            what = f"the code collapses: {added}"
            raise TrainingError(what, lower)
