"""The promises of a codec: its own, or those measured with other weights that it has adopted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.codec.other_weights import Adopted
from kvcompress.codec.promise import FALLBACK, LATENTS, Promise, promises_from_json, unpromised
from kvcompress.errors import InputError


class Promising:
    """The part of a codec that says which quality words it keeps, and how.

    Attributes:
        fitted: How it was fitted.
        adopted: Other weights whose sessions it encodes instead of its own; None for its own.
    """

    fitted: dict[str, Any]
    adopted: Adopted | None
    _promises: dict[str, Any]

    @property
    def promises(self) -> dict[str, Promise]:
        """What is promised of each quality word, with other weights what was measured with them.

        Read when it is asked for, so that a codec whose promises are damaged, a `CheckpointError`, still decodes and
        can be calibrated again.
        """
        return self.own_promises if self.adopted is None else dict(self.adopted.promises)

    @promises.setter
    def promises(self, promises: Mapping[str, Promise]) -> None:
        self._promises = {name: promise.to_json() for name, promise in promises.items()}

    @property
    def own_promises(self) -> dict[str, Promise]:
        """The same with the weights that it was fitted to, whatever it is tried on."""
        return promises_from_json(self._promises)

    @property
    def ordinary_sessions(self) -> Any:
        """What ordinary sessions look like, see `kvcompress.codec.out_of_distribution`; None where nothing is known."""
        return self.fitted.get("known") if self.adopted is None else self.adopted.known

    @property
    def tiers(self) -> dict[str, int]:
        """QP of each quality word that latents alone are promised to keep."""
        found = {name: promise.setting for name, promise in self.promises.items() if name != FALLBACK}
        return {
            name: setting.qp for name, setting in found.items() if setting.kind == LATENTS and setting.qp is not None
        }

    def promise_of(self, quality: str) -> Promise:
        """Return what is promised of a quality word; raises `InputError` where it was never verified."""
        promises = self.promises
        if quality not in promises or quality == FALLBACK:
            raise unpromised(quality, promises) if self.adopted is None else self.adopted.refusal(quality)
        return promises[quality]

    def qp_of(self, quality: str) -> int:
        """Return the QP at which latents alone keep a quality word; raises `InputError` where none does."""
        promise = self.promise_of(quality)
        if quality not in self.tiers:
            what = f"latents alone do not keep {quality!r} on this model: it is stored as {promise.setting.words()}"
            raise InputError(what, "Use --max-kl or --size-ratio here")
        return self.tiers[quality]
