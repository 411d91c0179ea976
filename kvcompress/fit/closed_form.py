"""The closed-form fit of one group of layers: its prediction, and the transform of the residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.lower_groups import Lower
from kvcompress.codec.recompute import ConditioningLayers
from kvcompress.data.shards import Shards
from kvcompress.format.raw_snapshot import raw_layers
from kvcompress.hf.channels import LayerShape, Rope
from tinyvae.fit.moments import Moments
from tinyvae.prior import BELOW_LAGS, PAST_DIRECTIONS, TokenPrior, TokenTable, contexts, lagged, without_first
from tinyvae.quantize import quantize
from tinyvae.transform import Metric, Transform, block_metric, evened, weighted_klt

LOWER_LATENTS = 192
"""Leading latents that a higher group is given of each of the lower ones,"""

LOWER_GROUPS = 2
"""of which the nearest count. A group of another kind of layers may hold fewer tokens; it tells of those."""

LOWER_STEP = 0.18
"""Lower latents are taken as they are decoded at a middling QP: steps of this many spreads of the widest."""

OUT_OF_PROPORTION = 36.0
"""A token is left out of the sums where a layer's squared channels are so many times those of ordinary tokens."""

EVENED = 0.75
"""Exponent of `tinyvae.transform.evened`."""

DIRECTION_SESSIONS = 12
"""Sessions that show which directions of known channels matter."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that are coded together.

    Attributes:
        layers: Their indices.
        known: Layers that the model recomputes, which predict them.
        lower: Lower groups, which do too.
    """

    layers: tuple[int, ...]
    conditioning: ConditioningLayers
    lower: Lower

    @classmethod
    def after(
        cls, groups: Sequence[Group], layers: tuple[int, ...], known: ConditioningLayers, shapes: Sequence[LayerShape]
    ) -> Group:
        """Return the group that follows others."""
        given = range(max(0, len(groups) - LOWER_GROUPS), len(groups))
        lower = Lower(tuple((number, min(LOWER_LATENTS, groups[number].width(shapes))) for number in given))
        return cls(layers, known, lower)

    def width(self, shapes: Sequence[LayerShape]) -> int:
        """Return the channels of the group, C."""
        return sum(shapes[index].channels for index in self.layers)

    def blocks(self, shapes: Sequence[LayerShape]) -> tuple[int, ...]:
        """Return the sizes of the blocks of channels that belong together."""
        return tuple(size for index in self.layers for size in shapes[index].blocks)


@dataclass(slots=True)
class Solved:
    """A group's prior and transform, the variances of its latents, and what higher groups are given of it.

    Attributes:
        prior: With its token table.
        transform: Its latents are the widest first.
        variances: [R] float32, of the latents in the metric.
        variance: Of all latents, those beyond R too.
        unexplained: Share of the weighted variance that the prior leaves.
        spread: Standard deviation of the widest latent before its unit was evened: the unit of the coarsest step.
        leading: Of each session [T, L] float16 leading latents as decoded; nothing of the last group.
        places: Of each session the positions [T] that they stand at.
    """

    prior: TokenPrior
    transform: Transform
    variances: Tensor
    variance: float
    unexplained: float
    spread: float
    leading: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name."""
        found = {f"prior.{name}": value for name, value in self.prior.state_dict().items()}
        found |= {f"transform.{name}": value for name, value in self.transform.state_dict().items()}
        found |= {"counts": torch.tensor([len(rows) for rows in self.leading], dtype=torch.int64)}
        if self.leading:
            found |= {"leading": torch.cat(self.leading), "places": torch.cat(self.places)}
        scalars = [self.variance, self.unexplained, self.spread, self.prior.inward.columns]
        return found | {"variances": self.variances, "scalars": torch.tensor(scalars, dtype=torch.float64)}

    @classmethod
    def from_tensors(
        cls,
        found: dict[str, Tensor],
        group: Group,
        shapes: Sequence[LayerShape],
        table: TokenTable,
        taps: int,
        sink: bool,
    ) -> Solved:
        """Rebuild it."""
        variance, unexplained, spread, units = found["scalars"].tolist()
        known = group.conditioning.channels(shapes)
        prior = new_prior(table, taps, int(units), group.width(shapes), known, group.lower.latents, sink)
        prior.load_state_dict({name[6:]: value for name, value in found.items() if name.startswith("prior.")})
        transform = Transform(group.blocks(shapes), len(found["variances"]), len(found["variances"]))
        transform.load_state_dict({name[10:]: value for name, value in found.items() if name.startswith("transform.")})
        counts = found["counts"].tolist()
        names = ("leading", "places")
        leading, places = (list(torch.split(found[name], counts)) if counts else [] for name in names)
        return cls(prior, transform, found["variances"], variance, unexplained, spread, leading, places)

    def cut(self, rank: int, sharp: int) -> Solved:
        """Return it with the leading latents only, of which some are stored in 8 bits and the others in 4."""
        transform = Transform(self.transform.blocks, rank, min(sharp, rank))
        transform.store(self.transform.synthesis.dense[:rank], self.transform.metric.dense)
        return replace(self, transform=transform, variances=self.variances[:rank])

    def facts(self) -> dict[str, Any]:
        """Return what the card says of the group's spectrum."""
        kept = float(self.variances.sum()) / max(self.variance, 1e-30)
        return {
            "rank": len(self.variances),
            "sharp": self.transform.synthesis.sharp_rows,
            "channels": self.transform.synthesis.sharp.columns,
            "unexplained_by_prior": round(self.unexplained, 4),
            "variance_kept": round(min(kept, 1.0), 5),
        }


def new_prior(
    table: TokenTable, taps: int, units: int, channels: int, known: int, below: int, sink: bool
) -> TokenPrior:
    """Return an empty prior that looks tokens up in a given table."""
    sizes = (table.sharp.packed.shape[0], table.rank, taps, units, channels)
    return TokenPrior(*sizes, 0, known, below=below, first=sink, table=table)


def solve_group(
    shards: Shards,
    group: Group,
    metric: Metric,
    fisher: Tensor,
    table: TokenTable,
    lower: Sequence[Solved],
    *,
    taps: int,
    width: int,
    rank: int,
    sink: bool,
    rope: Rope,
    is_last: bool,
    progress: Callable[[int, int], None],
) -> Solved:
    """Fit prior and transform of a group.

    Args:
        shards: Sessions to fit to.
        group: The group.
        metric: The weight of the squared error.
        fisher: [C, C] float32 Fisher matrix, in the metric's unit.
        table: The token table.
        lower: The groups below, solved.
        taps: Tokens the prior looks up.
        width: Its hidden units.
        rank: Latents.
        sink: Whether place 0 has a prior of its own.
        rope: Rotation of the keys.
        is_last: No group follows that would be given its leading latents.
        progress: Called after each session.
    """
    reader = _Reader(shards, group, table, lower, taps, sink, rope)
    known = reader.conditioning_channels
    if known:
        reader.directions = _known_directions(reader, metric)
    moments = _moments(reader, progress)
    units = min(width, len(metric), len(moments.features) - 1)
    prior = new_prior(table, taps, units, len(metric), known, group.lower.latents, sink)
    if prior.past is not None and reader.directions is not None:
        prior.past.store(reader.directions)
    prior.store(*moments.factored(metric, units))
    # The stored weights are rounded: constant and covariance are those of what they really leave.
    matrix = prior.mixing @ prior.outward.dense
    prior.bias.copy_(moments.constant(matrix))
    covariance = moments.residual_covariance(matrix, prior.bias)
    _, synthesis, plain = weighted_klt(covariance, metric, rank)
    synthesis, variances = evened(synthesis, plain, fisher.double(), EVENED)
    transform = Transform(group.blocks(_shapes(shards)), len(synthesis), len(synthesis))  # sharp until it is cut
    weight = metric.matrix()
    transform.store(synthesis, block_metric(weight, transform.blocks))
    whole = float((covariance * weight).sum())
    share = whole / max(1e-30, float((moments.covariance() * weight).sum()))
    beyond = (whole - float(plain.sum())) * float(variances[-1] / plain[-1].clamp(min=1e-30))
    variance, spread = float(variances.sum()) + max(0.0, beyond), float(plain[0].sqrt())
    solved = Solved(prior, transform, variances.float(), variance, share, spread)
    if not is_last:
        _add_leading(solved, reader)
    return solved


def _moments(reader: _Reader, progress: Callable[[int, int], None]) -> Moments:
    """Return the sums over all sessions, tokens out of all proportion left out."""
    blocks, count = _layer_blocks(reader.shards, reader.group), len(reader.shards)
    moments: Moments | None = None
    scale: tuple[Tensor, Tensor] | None = None
    for number in range(count):
        features, channels = reader.session(number)
        scale = _robust_scale(channels) if scale is None else scale
        ordinary = ordinary_rows(channels, scale, blocks)
        if moments is None:
            columns = features.shape[1] - reader.taps * reader.table.rank
            moments = Moments.empty(features.shape[1], channels.shape[1], columns)
        moments.add(features[ordinary], channels[ordinary])
        progress(number + 1, count)
    assert moments is not None
    return moments


@dataclass(slots=True)
class _Reader:
    """Reads of each session the regressors and channels of a group."""

    shards: Shards
    group: Group
    table: TokenTable
    lower: Sequence[Solved]
    taps: int
    sink: bool
    rope: Rope
    directions: Tensor | None = None

    @property
    def conditioning_channels(self) -> int:
        return self.group.conditioning.channels(_shapes(self.shards))

    def conditioning_rows(self, number: int, tokens: int) -> Tensor | None:
        """Return known channels [N, C'] of a session, of its first token 0 where that is a sink."""
        if not self.group.conditioning.layers:
            return None
        path = self.shards.directory / self.shards.rows[number].file
        rows = self.group.conditioning.rows(raw_layers(path, self.group.conditioning.layers)[1], tokens, self.rope)
        return rows if rows is None or not self.sink else without_first(rows)

    def session(self, number: int) -> tuple[Tensor, Tensor]:
        """Return regressors [T, F] and channels [T, C] float32 of the tokens that the sums are made of."""
        token_ids, places, channels = self.shards.channels(number, self.group.layers, self.rope)
        parts = [lagged(self.table.rows(token_ids), self.taps)]
        known = self.conditioning_rows(number, len(token_ids))
        if known is not None and self.directions is not None:
            parts += [known, *contexts(known @ self.directions)]
        rows = torch.cat(parts, 1)[places]
        below = self.below(number, places, len(token_ids))
        if below is not None:
            rows = torch.cat([rows, lagged(below, BELOW_LAGS)], 1)
        later = places >= int(self.sink)
        return rows[later], channels[later]

    def below(self, number: int, places: Tensor, tokens: int) -> Tensor | None:
        """Return what lower groups tell of the tokens at positions [T], [T, B] float32."""
        decoded = [(part.places[number], part.leading[number].float()) for part in self.lower]
        return self.group.lower.rows(decoded, places, tokens)


def _shapes(shards: Shards) -> list[LayerShape]:
    return [LayerShape(*shape) for shape in shards.settings["shapes"]]


def _layer_blocks(shards: Shards, group: Group) -> list[int]:
    return [_shapes(shards)[index].channels for index in group.layers]


def _known_directions(reader: _Reader, metric: Metric) -> Tensor:
    """Return the directions [C', D] of known channels whose past is looked at: those that tell most of the present."""
    moments = Moments.empty(reader.conditioning_channels, len(metric), reader.conditioning_channels)
    for number in range(min(DIRECTION_SESSIONS, len(reader.shards))):
        token_ids, places, channels = reader.shards.channels(number, reader.group.layers, reader.rope)
        known = reader.conditioning_rows(number, len(token_ids))
        assert known is not None
        moments.add(known[places], channels)
    return moments.directions(metric, PAST_DIRECTIONS)


def _robust_scale(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return median [C] and median distance from it [C] of channels [T, C]."""
    middle = channels.median(0).values
    distance = (channels - middle).abs().median(0).values
    return middle, distance.clamp(min=1e-6 * float(distance.max()) + 1e-12)


def ordinary_rows(channels: Tensor, scale: tuple[Tensor, Tensor], blocks: Sequence[int]) -> Tensor:
    """Return the mask [T] of tokens that are in proportion in every layer.

    Args:
        channels: [T, C] float32.
        scale: Middle and width [C] of each channel.
        blocks: Channels of each layer, which add up to C.
    """
    squares = ((channels - scale[0]) / scale[1]).square()
    by_layer = torch.stack([part.mean(1) for part in torch.split(squares, list(blocks), 1)], 1)
    return ~(by_layer > OUT_OF_PROPORTION * by_layer.median(0).values.clamp(min=1e-12)).any(1)


def _add_leading(solved: Solved, reader: _Reader) -> None:
    """Keep the leading latents of every session, as a decoder has them, for the groups above."""
    count = min(LOWER_LATENTS, len(solved.variances))
    analysis = solved.transform.analysis[:, :count]
    step = LOWER_STEP * solved.spread
    for number in range(len(reader.shards)):
        token_ids, places, channels = reader.shards.channels(number, reader.group.layers, reader.rope)
        known = reader.conditioning_rows(number, len(token_ids))
        hidden = solved.prior.hidden(token_ids, known)[places]
        below = reader.below(number, places, len(token_ids))
        hidden = hidden if below is None else solved.prior.with_below(hidden, below)
        latents = (channels - solved.prior.expected(hidden)) @ analysis
        decoded = quantize(latents, step, torch.zeros(1, 1, dtype=torch.float32)).float() * step
        if reader.sink and len(places) and int(places[0]) == 0:
            decoded[0] = 0.0
        solved.leading.append(decoded.clamp(-6e4, 6e4).half())
        solved.places.append(places)
