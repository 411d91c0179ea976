"""A weighted sum of five signals: surprise, novelty, arousal, reward and conflict (salience).

After SNARC, the salience filter of the SAGE project, which scores observations by five hand-weighted parts. Here each
part is something of a token that can be measured, taken as its rank in the session:

    surprise   -log p of the token given those before it
    novelty    1 - highest cosine of its keys to those of an earlier token
    arousal    attention that the last queries pay to it
    reward     squared gradient of sampled continuations by its cache: its effect on what the model will say
    conflict   disagreement of heads and layers about it

The weights were fitted, none below 0, to the rank of the damage that the loss of each token did. Cost: one reading of
the session, a few sampled continuations. Evidence: surprise, window_attention, sensitivity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvcompress.errors import CheckpointError, FormatError
from kvcompress.format.json_fields import JsonFields
from kvcompress.prune.evidence.key_similarity import novelty
from kvcompress.prune.evidence.record import SENSITIVITY, SURPRISE, WINDOW_ATTENTION, Evidence, ranks
from kvcompress.prune.scorers.features import conflict, received
from kvcompress.prune.scorers.profiles import FITTED, REMEDY, load_fitted, part

PARTS = ("surprise", "novelty", "arousal", "reward", "conflict")


class Salience:
    """Weighted sum of five ranks.

    Args:
        weights: A weight for each of `PARTS`; the fitted ones if not given.
        path: File of the fitted ones.
    """

    name = "salience"
    needs: tuple[str, ...] = (SURPRISE, WINDOW_ATTENTION, SENSITIVITY)

    def __init__(self, weights: Mapping[str, float] | None = None, path: Path = FITTED) -> None:
        self._weights, self._path = weights, path

    def fitted_in(self, path: Path) -> Salience:
        """Return the scorer with the fitted weights of a file."""
        return Salience(path=path)

    def parts(self, evidence: Evidence) -> Mapping[str, Tensor]:
        """Return the five ranks, each in [0, 1]."""
        return {
            "surprise": ranks(evidence.require_surprise()),
            "novelty": ranks(novelty(evidence)),
            "arousal": ranks(received(evidence)),
            "reward": ranks(evidence.require_sensitivity()),
            "conflict": ranks(conflict(evidence)),
        }

    def score(self, evidence: Evidence) -> Tensor:
        """Return the weighted sum of the parts."""
        total = torch.zeros(evidence.tokens, dtype=torch.float32)
        for name, value in self.parts(evidence).items():
            total += self.weight(name) * value
        return total

    def weight(self, name: str) -> float:
        """Return the weight of a part; raises `CheckpointError` where the file holds none."""
        if self._weights is not None:
            return float(self._weights[name])
        try:
            weights = part(load_fitted(self._path), "salience", self._path)
            return JsonFields(weights, "the weights of the scorer 'salience':").number(name)
        except FormatError as error:
            raise CheckpointError(error.what, REMEDY, path=self._path) from error


SCORER = Salience()
