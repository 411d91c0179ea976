"""A small network trained to predict measured damage.

In the spirit of "KVzap: Fast, Adaptive, and Faithful KV Cache Pruning" (Jegou and Jeblick, arXiv 2601.07891), which
distils KVzip into a small network on hidden states; here the input is what the other scorers measure, as ranks, and
the target is the damage that a unit of error in each token's cache did to what really followed. One hidden layer; the
loss is the deviance of a gamma distribution, whose minimum is the mean of the damage and not that of its logarithm.
Cost: one reading of the session, a few sampled continuations. Evidence: all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import CheckpointError, first_line
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.scorers.features import FEATURES, NEEDS, features
from kvcompress.prune.scorers.profiles import FITTED, REMEDY, load_fitted, part

HIDDEN = 16


class Learned:
    """Network of one hidden layer over ranks.

    Args:
        network: As `to_json` gives it; the fitted one if not given.
        path: File of the fitted one.
    """

    name = "learned"
    needs: tuple[str, ...] = NEEDS

    def __init__(self, network: Mapping[str, Any] | None = None, path: Path = FITTED) -> None:
        self._network, self._path = network, path

    def fitted_in(self, path: Path) -> Learned:
        """Return the scorer with the fitted network of a file."""
        return Learned(path=path)

    def score(self, evidence: Evidence) -> Tensor:
        """Return the predicted logarithm of the damage of a unit of error.

        Raises:
            CheckpointError: The network does not fit the features.
        """
        return self.of_features(features(evidence))

    def of_features(self, rows: Tensor) -> Tensor:
        """Return the score [N] of features [N, F]."""
        network = self._network if self._network is not None else part(load_fitted(self._path), "learned", self._path)
        try:
            module = from_json(network)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = f"the network of the scorer 'learned' is damaged ({first_line(error)})"
            raise CheckpointError(what, REMEDY, path=None if self._network is not None else self._path) from error
        with torch.no_grad():
            found: Tensor = module(rows)[:, 0]
        return found


def new_network(seed: int = 0) -> torch.nn.Sequential:
    """Return an untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(len(FEATURES), HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 1)
        ).float()


def to_json(network: torch.nn.Sequential) -> dict[str, Any]:
    """Return a network's numbers to six digits, with the features that it was trained on."""
    numbers = {name: _rounded(tensor.tolist()) for name, tensor in network.state_dict().items()}
    return {"features": list(FEATURES), "numbers": numbers}


def from_json(found: Mapping[str, Any]) -> torch.nn.Sequential:
    """Return the network of `to_json`, raising `ValueError` where it was trained on other features."""
    if list(found["features"]) != list(FEATURES):
        raise ValueError("it was trained on other features")
    network = new_network()
    network.load_state_dict(
        {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in found["numbers"].items()}
    )
    return network.eval()


def _rounded(numbers: Any) -> Any:
    return [_rounded(item) for item in numbers] if isinstance(numbers, list) else float(f"{numbers:.6g}")


SCORER = Learned()
