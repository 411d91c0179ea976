"""Geometry of a group of layers, and what is known about its tokens before decoding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tinyvae.quantize import LEVELS
from tinyvae.transform import SHARP_LATENTS

_LATER = {"predictor_width": 0, "lowest_level": 0, "first": False, "sharp_latents": SHARP_LATENTS}
"""Fields that earlier versions did not have, and what they then stand for."""


@dataclass(frozen=True, slots=True)
class TinyVAEConfig:
    """Geometry of one group of layers.

    Attributes:
        blocks: Sizes of the blocks of channels that belong together (a head's keys, its values); they add up to C.
        vocab_size: Number of token ids.
        rank: Number of latents.
        prior_rank: Columns of the token table.
        prior_taps: Tokens the prior looks up, the current one included.
        prior_width: Hidden units of the prior.
        prior_layers: Learned causal layers of the prior; 0 where it is in closed form.
        reference_step: Quantisation step of QP 0.
        predictor_width: Hidden units of the learned predictor; 0 where prediction is linear.
        lowest_level: Latents below this level are not coded, nor below that of a token's QP where it is lower: too
            narrow for their step to be worth a symbol. At coarse QPs the few that are not 0 tell much.
        first: Whether the token at place 0 has a prior, a step and levels of its own.
        sharp_latents: Leading latents whose synthesis is stored in 8 bits, see `Transform`.
    """

    blocks: tuple[int, ...]
    vocab_size: int
    rank: int
    prior_rank: int
    prior_taps: int
    prior_width: int
    reference_step: float
    prior_layers: int = 0
    predictor_width: int = 0
    lowest_level: int = 0
    first: bool = False
    sharp_latents: int = SHARP_LATENTS

    def __post_init__(self) -> None:
        """Refuse impossible geometries."""
        object.__setattr__(self, "blocks", tuple(self.blocks))
        sizes = (*self.blocks, self.vocab_size, self.rank, self.prior_rank, self.prior_taps, self.prior_width)
        learned = (self.prior_layers, self.predictor_width)
        if not self.blocks or min(sizes) < 1 or min(learned) < 0 or not self.reference_step > 0:
            raise ValueError(f"sizes and the reference step must be positive: {self}")
        if self.sharp_latents < 0:
            raise ValueError(f"{self.sharp_latents} sharp latents are impossible")
        if not 0 <= self.lowest_level < LEVELS:
            raise ValueError(f"the lowest level {self.lowest_level} is not in 0..{LEVELS - 1}")
        if self.rank > self.channels:
            raise ValueError(f"rank {self.rank} exceeds the {self.channels} channels")

    def to_json(self) -> dict[str, Any]:
        """Return the fields; those of later versions are named only where they say more than earlier ones did."""
        stated = asdict(self)
        return {name: value for name, value in stated.items() if name not in _LATER or value != _LATER[name]}

    @property
    def channels(self) -> int:
        """Keys and values of a token over the layers of the group, C."""
        return sum(self.blocks)


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What is known about the tokens of a group before any latent is.

    Attributes:
        token_ids: [T] int64.
        hidden: [T, H] float32, the prior's hidden units.
        lifts: [T] int32, levels that a token out of all proportion lies above others; 0 for ordinary ones. None where
            all are ordinary. What is decoded of a lifted token predicts no other.
    """

    token_ids: Tensor
    hidden: Tensor
    lifts: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Context:
        """Return the context of some of the tokens, by a mask or index [T] or [N]."""
        return Context(self.token_ids[rows], self.hidden[rows], None if self.lifts is None else self.lifts[rows])

    def ordinary(self, latents: Tensor) -> Tensor:
        """Return decoded latents [T, r] with those of lifted tokens 0: they tell of no other."""
        if self.lifts is None or not bool(self.lifts.any()):
            return latents
        return latents.masked_fill((self.lifts != 0)[:, None], 0.0)
