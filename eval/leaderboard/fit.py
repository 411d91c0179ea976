"""Fit what scorers learn: `scorers.json` of a codec, or `kvcompress/prune/scorers/fitted.json` of the bundled one.

Of each fitting session a first part is stored and what really followed is known. The damage that a unit of error in
each stored token's latents did to the predictions along it is measured by gradients, averaged over sampled outcomes;
no sampled future enters the target, only what scorers see. Then follow, in closed form or by descent:

    profiles   importance as a function of the rank in each scorer's order, beside what the codec expects by id and age
    salience   five weights, none below 0, by least squares on the rank of the damage
    learned    a network of 16 hidden units on the logarithm of the damage, by its gamma deviance
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvcompress.codec.sensitivity import token_importance
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.atomic import atomic_write
from kvcompress.hf import capture
from kvcompress.prune.allocate import own_importance_log2
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.record import KINDS, ranks
from kvcompress.prune.scorers.features import features
from kvcompress.prune.scorers.learned import Learned, new_network, to_json
from kvcompress.prune.scorers.profiles import KNOTS
from kvcompress.prune.scorers.registry import SCORERS, find_scorer, parts_of, scored
from kvcompress.prune.scorers.salience import PARTS, Salience

STEPS = 600
DRAWS = 4
CONTINUATION_TOKENS = 192
FITTED_LATER = ("salience", "learned")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """What was measured of one session.

    Attributes:
        damage: [N] float32, of mean 1: what a unit of squared error in each token's latents cost.
        own: [N] float32, the codec's own expectation, as the logarithm (base 2) of importance.
        scores: Of the scorers that need no fit, [N] each.
        parts: Of the salience, [N] each.
        features: [N, F] float32.
    """

    damage: Tensor
    own: Tensor
    scores: dict[str, Tensor]
    parts: dict[str, Tensor]
    features: Tensor


def measure_example(model: Any, tokenizer: Any, codec: TinyVAECodec, ids: Tensor, tokens: int, seed: int) -> Example:
    """Measure a session of which `tokens` tokens are stored and up to 192 more follow."""
    snapshot = capture(model, ids[:tokens], tokenizer=tokenizer)
    rest = ids[tokens : tokens + CONTINUATION_TOKENS]
    generator = torch.Generator().manual_seed(seed)
    damage = torch.zeros(tokens)
    for places, energy in token_importance(model, codec, snapshot, rest, generator, DRAWS):
        damage[places] += energy
    evidence = collect(model, snapshot, KINDS, tokenizer=tokenizer, codec=codec, seed=seed)
    names = [name for name in SCORERS if name not in FITTED_LATER]
    return Example(
        damage=damage / damage.mean().clamp(min=1e-30),
        own=own_importance_log2(codec, snapshot),
        scores={name: scored(find_scorer(name), evidence) for name in names},
        parts=parts_of(Salience(dict.fromkeys(PARTS, 0.2)), evidence),
        features=features(evidence),
    )


def fit_scorers(examples: Sequence[Example], progress: Progress) -> dict[str, Any]:
    """Return the parts of the fitted file."""
    salience = fit_salience(examples)
    network = fit_network(examples, lambda done: progress("network", done, STEPS))
    learned, weighted = Learned(network), Salience(salience)
    profiles: dict[str, Any] = {}
    for done, name in enumerate(SCORERS, 1):
        if name == "salience":
            scores = [sum(weighted_part(weighted, e)) for e in examples]
        elif name == "learned":
            scores = [learned.of_features(e.features) for e in examples]
        else:
            scores = [e.scores[name] for e in examples]
        profiles[name] = fit_profile(examples, [torch.as_tensor(score) for score in scores])
        progress("profiles", done, len(SCORERS))
    return {"profiles": profiles, "salience": salience, "learned": network}


def weighted_part(salience: Salience, example: Example) -> list[Tensor]:
    """Return the weighted parts of an example's salience."""
    return [salience.weight(name) * value for name, value in example.parts.items()]


def fit_salience(examples: Sequence[Example]) -> dict[str, float]:
    """Return five weights of sum 1, none below 0, that fit the rank of the damage best (projected gradient)."""
    rows = torch.cat([torch.stack([e.parts[name] for name in PARTS], 1) for e in examples]).double() - 0.5
    target = torch.cat([ranks(e.damage) for e in examples]).double() - 0.5
    gram, cross = rows.T @ rows / len(rows), rows.T @ target / len(rows)
    weights, rate = torch.full((len(PARTS),), 0.2, dtype=torch.float64), 1 / float(torch.linalg.matrix_norm(gram, 2))
    for _ in range(2000):
        weights = (weights - rate * (gram @ weights - cross)).clamp(min=0)
    weights = weights / weights.sum().clamp(min=1e-12)
    return {name: round(float(value), 4) for name, value in zip(PARTS, weights, strict=True)}


def fit_network(examples: Sequence[Example], progress: Callable[[int], None]) -> dict[str, Any]:
    """Return the network that predicts the logarithm of the damage, trained on all tokens at once."""
    rows, damage = torch.cat([e.features for e in examples]), torch.cat([e.damage for e in examples])
    network = new_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = _gamma_deviance(network(rows)[:, 0], damage)
        torch.autograd.backward([loss])
        optimiser.step()
        schedule.step()
        progress(step + 1)
    return to_json(network)


def _gamma_deviance(log_mean: Tensor, found: Tensor) -> Tensor:
    """Return the mean deviance, up to a constant, of positive numbers whose mean is predicted by its logarithm."""
    return (found.clamp(max=1e3) * torch.exp(-log_mean) + log_mean).mean()


def fit_profile(examples: Sequence[Example], scores: Sequence[Tensor]) -> dict[str, Any]:
    """Return share and curve of a scorer: log2 worth = share x own + curve(rank), by the gamma deviance."""
    knots = torch.from_numpy(_hats(np.concatenate([ranks(score).numpy() for score in scores])))
    own, damage = torch.cat([e.own for e in examples]), torch.cat([e.damage for e in examples])
    curve, share = torch.zeros(len(KNOTS), requires_grad=True), torch.ones(1, requires_grad=True)
    optimiser = torch.optim.Adam([curve, share], lr=0.05)
    for _ in range(STEPS):
        optimiser.zero_grad()
        log2 = knots @ curve + share * own
        rough = (curve[2:] - 2 * curve[1:-1] + curve[:-2]).square().sum()
        loss = _gamma_deviance(log2 * float(np.log(2)), damage) + 1e-3 * rough
        torch.autograd.backward([loss])
        optimiser.step()
    numbers = [round(float(value), 4) for value in curve.detach()]
    return {"share": round(float(share.detach()), 4), "curve": numbers}


def _hats(places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return [N, len(KNOTS)] float32: weights of linear interpolation between the knots at places in [0, 1]."""
    columns = [np.interp(places, KNOTS, row) for row in np.eye(len(KNOTS))]
    return np.stack(columns, 1).astype(np.float32)


def write_fitted(path: Path, fitted: dict[str, Any], made: dict[str, Any]) -> None:
    """Write the fitted numbers and what they were made of; the file appears whole or not at all."""
    text = json.dumps({"made": made, **fitted}, indent=1) + "\n"
    atomic_write(path, [text.encode()], force=True)
