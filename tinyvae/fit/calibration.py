"""Closed-form calibration of one group: how latents are predicted, and the scale of the residual.

All of it is measured on latents of real sessions, decoded pass by pass as the decoder will, at one middling QP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.config import Context
from tinyvae.model import TinyVAE
from tinyvae.neighbours import CODING_PASSES, MATCHES, SOURCES, CodingPass, coding_passes
from tinyvae.quantize import LEVELS, LEVELS_PER_OCTAVE, LOWEST_SCALE_LOG2, quantize, step_at

Rows = Sequence[tuple[Tensor, Context]]
"""Latents [T, R] float32 and context of each session."""

CALIBRATION_QP = 40
"""Rate at which neighbours are decoded here, in the middle of what is used."""

RIDGE = 0.01

LOWEST_OPENING, HIGHEST_OPENING = 16, 127
"""The token at place 0 may lie so many levels below or above the others; an unusual one can be wider than those seen.
"""


def calibrate_group(
    vae: TinyVAE,
    sessions: Rows,
    sample_rows: int,
    *,
    predict: bool = True,
    qp: int = CALIBRATION_QP,
    sink: bool = False,
) -> Tensor:
    """Fit weights and levels of a group in place and return normalised samples [S] float32 for the tables.

    Args:
        vae: Its prior and transform are fitted; levels are replaced, and so are the weights of the prediction, unless
            they were learned together with a predictor.
        sessions: Latents and context of sessions that those have not seen.
        sample_rows: Rows of latents whose values are returned.
        predict: Whether latents are predicted from decoded ones; without, each stands for itself.
        qp: Rate at which neighbours are decoded here.
        sink: Whether the first token of each session stands at place 0 and is like no other: it has a level of its own.
    """
    openings = [(latents[:1], context.token_ids[:1]) for latents, context in sessions] if sink else []
    if sink:
        later = [slice(1, None)] * len(sessions)
        sessions = [
            (latents[rows], Context(context.token_ids[rows], context.hidden[rows]))
            for (latents, context), rows in zip(sessions, later, strict=True)
        ]
    vae.base_level.fill_(LEVELS - qp - 1)  # nothing is dropped while it is measured
    vae.match_level.zero_()
    vae.token_level.zero_()
    vae.centroids.zero_()
    if not predict:
        vae.weights.zero_()
        if vae.predictor is not None:
            vae.predictor.silence()
    elif vae.predictor is None:
        vae.weights.copy_(prediction_weights(vae, sessions, qp))
    rest, ids, places = _residuals(vae, sessions, qp)
    power = [
        rest[places[:, 0] == coding_pass].square().mean(0).clamp(min=1e-24) for coding_pass in range(CODING_PASSES)
    ]
    normal = rest * torch.stack(power).rsqrt()[places[:, 0]]
    token_level = token_levels(normal, ids, vae.config.vocab_size)
    normal = normal * _octaves(-token_level[ids])
    match_level = match_levels(normal, places)
    normal = normal * _octaves(-match_level[places[:, 0], places[:, 1]])
    rest = rest * _octaves(-token_level[ids] - match_level[places[:, 0], places[:, 1]])
    for coding_pass in range(CODING_PASSES):
        deviation = rest[places[:, 0] == coding_pass].square().mean(0).sqrt().clamp(min=1e-12)
        octaves = torch.log2(deviation / vae.config.reference_step) - LOWEST_SCALE_LOG2
        vae.base_level[coding_pass] = (LEVELS_PER_OCTAVE * octaves).round().clamp(-LEVELS, LEVELS).to(torch.int16)
        normal[places[:, 0] == coding_pass] = rest[places[:, 0] == coding_pass] / deviation
    vae.token_level.copy_(token_level)
    vae.match_level.copy_(match_level)
    if openings and vae.first_place is not None:
        vae.first_place[1] = opening_level(vae, openings)
    pick = torch.randperm(len(normal), generator=torch.Generator().manual_seed(0))[:sample_rows]
    return normal[pick, : leading_latents(normal.shape[1])].flatten()


def opening_level(vae: TinyVAE, openings: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Return how many levels the latents [1, R] at place 0, given with their token id [1], lie above other tokens'."""
    octaves = vae.base_level[0].float() / LEVELS_PER_OCTAVE + LOWEST_SCALE_LOG2
    spread = vae.config.reference_step * torch.exp2(octaves)
    leading = leading_latents(vae.config.rank)
    energy = []
    for latents, token_ids in openings:
        of_id = torch.exp2(vae.token_level[token_ids].float() / LEVELS_PER_OCTAVE)
        energy.append(float((latents[0, :leading] / spread[:leading] / of_id).square().mean()))
    found = 0.5 * LEVELS_PER_OCTAVE * float(torch.tensor(energy, dtype=torch.float32).mean().clamp(min=1e-12).log2())
    return round(min(max(found, -LOWEST_OPENING), HIGHEST_OPENING))


def prediction_weights(vae: TinyVAE, sessions: Rows, qp: int = CALIBRATION_QP) -> Tensor:
    """Return [CODING_PASSES, MATCHES, SOURCES, R] float32: of each latent the ridge regression on its own sources.

    One number a source and latent: a full matrix gains a further tenth of what this gains and is larger than the codec.
    """
    rank = vae.config.rank
    gram = torch.zeros(CODING_PASSES, MATCHES, rank, SOURCES, SOURCES, dtype=torch.float32)
    cross = torch.zeros(CODING_PASSES, MATCHES, rank, SOURCES, dtype=torch.float32)
    for latents, context in sessions:
        step = step_at(vae.config.reference_step, qp)
        rounded = quantize(latents, step, torch.zeros(1, 1, dtype=torch.float32)).float() * step
        decoded = torch.cat([rounded, torch.zeros(1, rank, dtype=torch.float32)])
        for coding_pass in coding_passes(context.token_ids):
            if coding_pass.number:
                _add(gram, cross, coding_pass, decoded[coding_pass.sources], latents[coding_pass.rows])
    floor = RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-9
    weights: Tensor = torch.linalg.solve(gram + floor * torch.eye(SOURCES, dtype=torch.float32), cross[..., None])[
        ..., 0
    ]
    return weights.transpose(-1, -2)


def _add(gram: Tensor, cross: Tensor, coding_pass: CodingPass, sources: Tensor, latents: Tensor) -> None:
    for match in range(MATCHES):
        chosen = coding_pass.matches == match
        values = sources[:, chosen]
        gram[coding_pass.number, match] += torch.einsum("snr,tnr->rst", values, values)
        cross[coding_pass.number, match] += torch.einsum("snr,nr->rs", values, latents[chosen])


def _residuals(vae: TinyVAE, sessions: Rows, qp: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what prediction leaves [N, R], token ids [N], and pass and match [N, 2] of all tokens."""
    rest, ids, places = list[Tensor](), list[Tensor](), list[Tensor]()
    step = step_at(vae.config.reference_step, qp)
    for latents, context in sessions:
        token_ids = context.token_ids

        def keep(
            coding_pass: CodingPass, predicted: Tensor, latents: Tensor = latents, token_ids: Tensor = token_ids
        ) -> Tensor:
            rest.append(latents[coding_pass.rows] - predicted)
            ids.append(token_ids[coding_pass.rows])
            places.append(
                torch.stack([torch.full_like(coding_pass.matches, coding_pass.number), coding_pass.matches], 1)
            )
            return quantize(rest[-1], step, torch.zeros(1, 1, dtype=torch.float32))

        qps = torch.full_like(token_ids, qp, dtype=torch.int32)
        vae.reconstruct(context, qps, vae.levels(token_ids, qps), keep)
    return torch.cat(rest), torch.cat(ids), torch.cat(places)


def _octaves(levels: Tensor) -> Tensor:
    """Return the factors [N, 1] float32 that levels [N] stand for."""
    return torch.exp2(levels.float() / LEVELS_PER_OCTAVE)[:, None]


def leading_latents(rank: int) -> int:
    """Return how many of the widest latents stand for all when their spread is measured."""
    return min(rank, max(8, rank * 2 // 3))


def _log_energy(normal: Tensor) -> Tensor:
    """Return [N]: octaves that each token's latents [N, R] of about unit spread lie above the average."""
    energy = 0.5 * torch.log2(normal[:, : leading_latents(normal.shape[1])].square().mean(1).clamp(min=1e-6))
    return energy - energy.mean()


def match_levels(normal: Tensor, places: Tensor) -> Tensor:
    """Return [CODING_PASSES, MATCHES] int16: levels that tokens of a pass and match lie above the average of the pass.

    Args:
        normal: [N, R] float32 of about unit spread in each pass.
        places: [N, 2] int64 pass and match.
    """
    energy, out = _log_energy(normal), torch.zeros(CODING_PASSES, MATCHES, dtype=torch.float32)
    for coding_pass in range(CODING_PASSES):
        inside = places[:, 0] == coding_pass
        for match in range(MATCHES):
            chosen = inside & (places[:, 1] == match)
            if int(chosen.sum()) >= 8:
                out[coding_pass, match] = energy[chosen].mean() - energy[inside].mean()
    return (LEVELS_PER_OCTAVE * out).round().clamp(-32, 32).to(torch.int16)


def token_levels(normal: Tensor, token_ids: Tensor, vocab_size: int, shrinkage: float = 8.0) -> Tensor:
    """Return [V] int8: how many levels a token's latents lie above or below the average.

    The mean of the log energy over the leading latents, shrunk towards 0 where a token is rare.

    Args:
        normal: [N, R] float32 of about unit spread.
        token_ids: [N] int64.
        vocab_size: V.
        shrinkage: Occurrences at which half of the measured level is believed.
    """
    energy = _log_energy(normal)
    sums = torch.zeros(vocab_size, dtype=torch.float32).index_add_(0, token_ids, energy)
    counts = torch.zeros(vocab_size, dtype=torch.float32).index_add_(0, token_ids, torch.ones_like(energy))
    octaves = sums / (counts + shrinkage)
    return (LEVELS_PER_OCTAVE * octaves).round().clamp(-24, 24).to(torch.int8)
