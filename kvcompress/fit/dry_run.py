"""Estimate memory, disk space and time of each pass, from a model's configuration and the session lengths.

Time is operations over the speed of this machine, measured by one matrix product; memory is that of the largest
tensors of a pass. Nothing is loaded but the configuration, so it works for models far too large for the machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kvcompress.codec.recompute import ConditioningLayers
from kvcompress.fit.budget import MOST_COLUMNS, UNITS_A_CHANNEL, Budget, prior_columns
from kvcompress.fit.closed_form import LOWER_LATENTS, Group
from kvcompress.fit.settings import FitSettings
from kvcompress.fit.token_table import REGRESSION_SESSIONS, SKETCH_CHANNELS, table_pays
from kvcompress.hf.channels import group_layers
from kvcompress.hf.geometry import ModelGeometry
from tinyvae.prior import CONTEXTS, PAST_DIRECTIONS

MEASURED_SIZE = 1536
DECOMPOSITION = 12.0
"""Operations of an eigendecomposition in units of the size cubed, at the speed of a product."""

CALIBRATION_MEASUREMENTS = 8
"""Settings at which each session kept out is decoded and resumed."""

_FLOAT, _DOUBLE, _HALF = 4.0, 8.0, 2.0


@dataclass(frozen=True, slots=True)
class PassCost:
    """One pass.

    Attributes:
        name: In words.
        seconds: On this machine.
        memory_bytes: Largest tensors held at once.
        disk_bytes: What it leaves on the disk.
    """

    name: str
    seconds: float
    memory_bytes: float
    disk_bytes: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return asdict(self)


def machine_speed() -> float:
    """Return operations a second of a float32 matrix product on this machine."""
    matrix = torch.randn(MEASURED_SIZE, MEASURED_SIZE, dtype=torch.float32)
    matrix @ matrix
    start = time.perf_counter()
    matrix @ matrix
    return 2 * MEASURED_SIZE**3 / (time.perf_counter() - start)


def pass_costs(model: ModelGeometry, sessions: int, tokens: int, settings: FitSettings, speed: float) -> list[PassCost]:
    """Return what each pass of a fit costs.

    Args:
        model: Geometry of the model.
        sessions: How many.
        tokens: Of each, the continuation among them.
        settings: Settings of the fit.
        speed: Operations a second.
    """
    return list(_costs(model, sessions, tokens, settings, speed))


def _costs(model: ModelGeometry, sessions: int, tokens: int, settings: FitSettings, speed: float) -> Iterator[PassCost]:
    continued = min(settings.continuation_tokens, tokens // 2)
    prefix, kept = tokens - continued, round(settings.calibration_share * sessions)
    fitting = sessions - kept
    sensitive = min(settings.fisher_sessions, fitting)
    groups = groups_of(model, settings)
    widths = [group.width(model.shapes) for group in groups]
    every = sum(shape.channels for shape in model.shapes)
    weights, active = model.parameters * _FLOAT, 2.0 * model.parameters
    shards = _HALF * prefix * every * (sessions + sensitive) + _HALF * model.vocab_size * model.hidden_size
    run = active * (sessions * prefix + 3 * sensitive * continued)
    yield PassCost("harvest", run / speed, weights + _FLOAT * 3.0 * every * tokens, shards)
    squares = sum(width**2 for width in widths)
    fishers = _FLOAT * squares
    gather = 2.0 * sensitive * prefix * squares
    yield PassCost(
        "sensitivity",
        (gather + DECOMPOSITION * sum(w**3 for w in widths)) / speed,
        2 * fishers + _large(widths),
        fishers,
    )
    columns = prior_columns(
        Budget(settings.codec_share * 2 * model.parameters, model.vocab_size, groups, model.shapes), model.hidden_size
    )
    columns = settings.prior_rank or min(columns, MOST_COLUMNS)
    yield _table_cost(model, fitting, prefix, widths, columns, speed)
    yield _solve_cost(model, groups, fitting * prefix, columns, settings, speed)
    rank = settings.rank or max(widths) // 4
    project = 2.0 * rank * sum(widths)
    worth = project * prefix * (sensitive + 2 * kept)
    held = _FLOAT * kept * prefix * rank * len(groups)
    yield PassCost("steps, prediction, levels", worth / speed, held)
    resume = kept * CALIBRATION_MEASUREMENTS * (active * continued + 2 * project * prefix)
    yield PassCost("verifying qualities", resume / speed, weights + _FLOAT * continued * model.vocab_size * 4)


def groups_of(model: ModelGeometry, settings: FitSettings) -> list[Group]:
    """Return the groups of layers that a fit will make."""
    found: list[Group] = []
    recompute = settings.recompute_layers
    for layers in group_layers(model.kinds, model.shapes, recompute + 1 if recompute else 0):
        found.append(Group.after(found, layers, ConditioningLayers.of(layers[0], recompute, model.kinds), model.shapes))
    return found


def _large(widths: list[int]) -> float:
    return 3.0 * _DOUBLE * max(widths) ** 2


def _table_cost(
    model: ModelGeometry, fitting: int, prefix: int, widths: list[int], columns: int, speed: float
) -> PassCost:
    """Return the cost of the token statistics."""
    table = _FLOAT * model.vocab_size * columns
    if table_pays(fitting * prefix, model.vocab_size):
        sketched = min(sum(widths), SKETCH_CHANNELS)
        memory = _FLOAT * model.vocab_size * sketched + table
        return PassCost(
            "token table, from means", fitting * prefix * 2.0 * sum(widths) * sketched / speed, memory, table / 2
        )
    size, tokens = model.hidden_size, min(fitting, REGRESSION_SESSIONS) * prefix
    work = 2.0 * tokens * size * (size + sum(widths)) + DECOMPOSITION * size**3
    memory = 3.0 * _DOUBLE * size**2 + 2.0 * _DOUBLE * size * max(widths) + table
    return PassCost("token table, from embeddings", work / speed, memory, table / 2)


def _solve_cost(
    model: ModelGeometry, groups: list[Group], tokens: int, columns: int, settings: FitSettings, speed: float
) -> PassCost:
    """Return the cost of prior and transform of all groups, which come one after another."""
    work, peak, disk = 0.0, 0.0, 0.0
    for group in groups:
        width, known = group.width(model.shapes), group.conditioning.channels(model.shapes)
        features = (
            settings.prior_taps * columns + known + CONTEXTS * min(known, PAST_DIRECTIONS) + 2 * group.lower.latents
        )
        work += (
            2.0 * tokens * (features**2 + features * width + width**2)
            + 4 * DECOMPOSITION * width**3
            + 2.0 * features**3
        )
        peak = max(peak, _DOUBLE * (2 * features**2 + 3 * features * width + 7 * width**2))
        disk += width * (width / 4 + width / UNITS_A_CHANNEL) + _HALF * tokens * LOWER_LATENTS
    return PassCost("prior and transform", work / speed, peak + _HALF * tokens * LOWER_LATENTS * len(groups), disk)
