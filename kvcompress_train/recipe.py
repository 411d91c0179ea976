"""What decides a codec's weights: a YAML file, read strictly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from kvcompress.errors import InputError
from kvcompress.fit.settings import FitSettings
from kvcompress_train.recipes import find_recipe, recipe_text


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training.

    Attributes:
        steps: Optimiser steps; 0 leaves the stage out.
        learning_rate: Highest rate of the learned parts, and of what the closed form found of prior and prediction.
        synthesis_rate: Highest rate of the synthesis, as a share of its root mean square.
        sessions: Sessions a step.
        prior_rate: Highest rate of what the closed form found of prior and prediction instead, as a share of each
            matrix's root mean square: steps as large as fresh parts need can take it away from where it was good. 0
            leaves the closed form as it is.
        averaging: Decay of the running mean of the weights, which is what is looked at and kept; 0 takes the weights of
            the last step. Where one step sees one session, the mean is the less noisy by far.
    """

    steps: int
    learning_rate: float
    synthesis_rate: float = 0.0
    sessions: int = 1
    prior_rate: float | None = None
    averaging: float = 0.0


@dataclass(frozen=True, slots=True)
class CodecRecipe:
    """How a codec is made.

    Attributes:
        fit: Settings of the closed form, from which training starts.
        prior_layers: Learned causal layers of the prior.
        predictor_width: Hidden units of the learned predictor; 0 keeps prediction linear.
        rate_stage: Prior and prediction, on bits and on the error of what is not coded.
        divergence_stage: These and the synthesis, on bits and the KL divergence of the resumed model.
        lowest_qp: Coarsest QP trained for.
        highest_qp: Finest QP trained for.
        train_table: Whether the token table is trained. One that comes from a model's own embeddings knows tokens that
            no session holds: trained, the others would move away from them.
        continuation_tokens: Tokens predicted from a cache, at most.
        mixed_share: Share of the steps whose tokens are in different tiers, as a plan leaves them.
        analysis_steps: Steps after which the analysis follows the synthesis; the larger the model, the more it saves.
        validate_steps: Steps after which sessions kept apart are looked at.
        patience: A stage ends when so many looks in a row found nothing better; what is kept is the best.
        devices: Processes of data-parallel training.
        logger: "wandb" (offline unless its environment says otherwise) or "csv".
        seed: Of the split, the order and the rates.
    """

    fit: FitSettings = field(default_factory=lambda: FitSettings(rank=352, prior_rank=72, prior_width=160))
    prior_layers: int = 1
    predictor_width: int = 96
    rate_stage: Stage = field(default_factory=lambda: Stage(2000, 2e-3))
    divergence_stage: Stage = field(default_factory=lambda: Stage(1300, 2e-4, synthesis_rate=2e-3))
    lowest_qp: int = 0
    highest_qp: int = 72
    train_table: bool = True
    continuation_tokens: int = 192
    mixed_share: float = 0.3
    analysis_steps: int = 1
    validate_steps: int = 200
    patience: int = 4
    devices: int = 1
    logger: str = "wandb"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-able data."""
        return asdict(self)


def read_recipe(name_or_path: str | Path) -> CodecRecipe:
    """Read a recipe; what it does not name keeps its default.

    Args:
        name_or_path: A YAML file, or the name of a recipe that comes along.

    Raises:
        InputError: There is none, it is not YAML, or it names what no recipe has.
    """
    path, text = find_recipe(name_or_path), recipe_text(name_or_path)
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"the recipe is not YAML ({str(error).splitlines()[0]})", path=path) from error
    parts = {"fit": FitSettings, "rate_stage": Stage, "divergence_stage": Stage}
    values = _checked(CodecRecipe, data, path, "")
    for name, kind in parts.items():
        if name in values:
            values[name] = _built(kind, values[name], path, f"{name}.")
    recipe: CodecRecipe = _built(CodecRecipe, values, path, "")
    _require(recipe, path)
    return recipe


def _checked(kind: type[Any], data: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InputError(f"{where or 'the recipe'} is not a mapping", path=path)
    known = {item.name for item in fields(kind)}
    odd = sorted(set(map(str, data)) - known)
    if odd:
        raise InputError(f"no recipe has {where}{odd[0]}", f"It may have {', '.join(sorted(known))}", path=path)
    return dict(data)


_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}


def _built(kind: type[Any], data: Any, path: Path, where: str) -> Any:
    values = _checked(kind, data, path, where) if isinstance(data, dict) else data
    types = {item.name: item.type for item in fields(kind)}
    for name, value in values.items():
        wanted = _KINDS.get(str(types[name]))
        if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise InputError(f"{where}{name} must be of type {types[name]}, not {value!r}", path=path)
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where or 'the recipe'} lacks a value ({error})", path=path) from error


def _require(recipe: CodecRecipe, path: Path) -> None:
    learned = (recipe.prior_layers, recipe.predictor_width)
    counts = (recipe.rate_stage.steps, recipe.divergence_stage.steps, *learned, recipe.lowest_qp)
    if min(counts) < 0 or recipe.highest_qp < recipe.lowest_qp:
        raise InputError(
            "steps, layers, widths and QPs must not be negative, nor the lowest QP above the highest", path=path
        )
    ones = (recipe.devices, recipe.continuation_tokens, recipe.analysis_steps, recipe.validate_steps, recipe.patience)
    if min(ones) < 1:
        what = "devices, continuation_tokens, analysis_steps, validate_steps and patience must be at least 1"
        raise InputError(what, path=path)
    if not all(0 <= stage.averaging < 1 for stage in (recipe.rate_stage, recipe.divergence_stage)):
        raise InputError("averaging must be at least 0 and below 1", path=path)
    if not 0 <= recipe.mixed_share <= 1:
        raise InputError(f"mixed_share is {recipe.mixed_share}, not a share", path=path)
    if recipe.logger not in ("wandb", "csv"):
        raise InputError(f"no logger is called {recipe.logger!r}", "Use wandb or csv", path=path)
