"""Coding a session as the codec does, with gradients: the very symbols of the encoder, the channels of the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvcompress.codec.analysis import Analysis
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hf.channels import from_channels, group_positions, to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot
from tinyvae import Context, TinyVAE
from tinyvae.neighbours import coding_passes
from tinyvae.quantize import dequantize, quantize, steps_at


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """One group of layers, coded.

    Attributes:
        group: Index of the group.
        context: Of its T tokens, lower groups known.
        channels: [T, C] float32, exact.
        latents: [T, R] float32, of what the prior leaves of them, lower groups known.
        residuals: [T, R] float32, what prior and prediction leave to code.
        decoded: [T, R] float32, latents that the decoder has.
        spoken: [T, R] bool, latents whose symbol is not 0.
        qps: [T] int32.
        levels: [T, R] int32, negative where nothing is coded.
    """

    group: int
    context: Context
    channels: Tensor
    latents: Tensor
    residuals: Tensor
    decoded: Tensor
    spoken: Tensor
    qps: Tensor
    levels: Tensor


def coded_groups(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int, offsets: Tensor | None = None) -> Iterator[Coded]:
    """Yield the groups of a session, lower ones first, as `TinyVAECodec.encode` codes them.

    What is decoded of lower groups is a constant to higher ones: each group is trained for itself, and the gradients of
    the resumed model reach all of them.

    Args:
        codec: The codec, in training or not.
        snapshot: The session.
        qp: Quantisation parameter.
        offsets: [N] integer, added to the QP of each token.
    """
    rope, found = rope_of(snapshot.origin), list[tuple[Tensor, Tensor, Context]]()
    for group, layers in enumerate(codec.groups):
        vae, places = codec.vae(group), group_positions(snapshot, layers)
        context = vae.context(snapshot.token_ids, codec.conditioning_rows(snapshot, group), places)
        channels = to_channels(snapshot, layers, rope)
        found.append((channels, _latents(vae, context, channels), context))
    outliers = Analysis(codec, snapshot, [(latents.detach(), context) for _, latents, context in found]).outliers
    lifts, finer = outliers.spread(snapshot.tokens)
    below = list[tuple[Tensor, Tensor]]()
    for group, (channels, latents, context) in enumerate(found):
        vae, places = codec.vae(group), group_positions(snapshot, codec.groups[group])
        qps = (codec.qps(group, snapshot.token_ids, qp, offsets) + finer)[places]
        lifted = vae.lifts(snapshot.token_ids, lifts if len(outliers.tokens) else None)
        context = replace(context, lifts=None if lifted is None else lifted[places])
        context, wanted = vae.given(context, latents, codec.lower[group].rows(below, places, snapshot.tokens))
        levels = _levels(vae, context, qps, latents.shape[1])
        residuals, decoded, spoken = coded_latents(vae, wanted, context, qps, levels)
        below.append((places, context.ordinary(decoded.detach())))
        yield Coded(group, context, channels, wanted, residuals, decoded, spoken, qps, levels)


def _latents(vae: TinyVAE, context: Context, channels: Tensor) -> Tensor:
    """Return what `TinyVAE.analyse` does; the product of all channels has no gradient, and the prior's is as narrow."""
    whole = vae.transform.analyse(channels - vae.prior.bias.detach())
    moved = vae.transform.analyse((vae.prior.bias.detach() - vae.prior.bias)[None])
    return whole + moved - context.hidden @ vae.moving


def _levels(vae: TinyVAE, context: Context, qps: Tensor, latents: int) -> Tensor:
    levels = vae.levels(context.token_ids, qps, context.lifts)
    return torch.nn.functional.pad(levels, (0, latents - levels.shape[1]), value=-1)


def coded_latents(
    vae: TinyVAE, latents: Tensor, context: Context, qps: Tensor, levels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Code latents [T, R] as the codec does, pass by pass, with gradients past the quantiser.

    The symbols are those that the encoder would write. Gradients take a latent whose symbol is not 0 as it was before
    rounding (straight through), and one whose symbol is 0 as what prior and prediction say: there these alone decide
    what later tokens and the model see.

    Returns:
        What prediction leaves to code, what the decoder has, and where symbols are not 0, all [T, R].
    """
    step = steps_at(vae.config.reference_step, qps)
    ordinary = torch.ones(len(latents), 1) if context.lifts is None else (context.lifts == 0).float()[:, None]
    shown, decoded = latents.new_zeros(len(latents) + 1, latents.shape[1]), torch.zeros_like(latents)
    residuals, told = torch.zeros_like(latents), torch.zeros(latents.shape, dtype=torch.bool)
    for coding_pass in coding_passes(context.token_ids):
        span = coding_pass.span
        predicted = vae.predicted(shown, coding_pass, context, qps)
        residual = latents[span] - predicted
        symbols = quantize(residual.detach(), step[span], levels[span])
        spoken = predicted + dequantize(symbols, step[span], levels[span], vae.centroids)
        straight = spoken.detach() + latents[span] - latents[span].detach()
        rows = torch.where(symbols != 0, straight, predicted)
        decoded = decoded.index_copy(0, coding_pass.rows, rows)
        shown = shown.index_copy(0, coding_pass.rows, rows * ordinary[span])
        residuals = residuals.index_copy(0, coding_pass.rows, residual)
        told[span] = symbols != 0
    return residuals, decoded, told


def as_cached(codec: TinyVAECodec, snapshot: KVSnapshot, coded: Sequence[Coded]) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values [1, H, T, D] of every layer as the decoder gives them, RoPE applied, with gradients."""
    known = codec.conditioning_layers(snapshot)
    layers = {index: (layer.keys[None], layer.values[None]) for index, layer in known.items()}
    rope = rope_of(snapshot.origin)
    for one in coded:
        indices = codec.groups[one.group]
        channels = codec.vae(one.group).synthesise(one.context, one.decoded)
        places = group_positions(snapshot, indices)
        rebuilt = from_channels(
            channels, indices, codec.shapes, places, rope, "float32"
        )  # gradients are too small for 16 bits
        layers |= {index: (layer.keys[None], layer.values[None]) for index, layer in rebuilt.items()}
    return [layers[index] for index in range(len(layers))]
