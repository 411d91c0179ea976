"""The codec with one part taken out, levels and tables fitted again to what remains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.fit.fitter import fit_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.snapshot import KVSnapshot
from tinyvae import TinyVAE
from tinyvae.fit.calibration import calibrate_group
from tinyvae.prior import CausalBlock
from tinyvae.tables import build_tables

SAMPLE_ROWS = 4096
MOST_SAMPLES = 400_000


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A codec and what it lacks."""

    name: str
    codec: TinyVAECodec


def variants(codec: TinyVAECodec, calibration: Sequence[KVSnapshot]) -> Iterator[Variant]:
    """Yield the codec whole and without each of its parts.

    Args:
        codec: A TinyVAE codec; it is not changed.
        calibration: Sessions that levels and tables are fitted to again.
    """
    yield Variant("whole", refitted(codec, calibration))
    yield Variant("one step for all tokens", refitted(codec, calibration, _one_step))
    yield Variant("one step for all ids", refitted(codec, calibration, lambda vae: vae.token_offset.zero_()))
    yield Variant("no prediction from decoded tokens", refitted(codec, calibration, predict=False))
    if codec.vae(0).predictor is not None:
        yield Variant("no learned prediction", refitted(codec, calibration, _no_predictor))
    yield Variant("no level by token id", refitted(codec, calibration, after=lambda vae: vae.token_level.zero_()))
    yield Variant("no token prior", refitted(codec, calibration, _no_prior))
    if codec.vae(0).config.prior_layers:
        yield Variant("no causal layers", refitted(codec, calibration, _no_layers))
    yield Variant("analysis in the plain metric", refitted(codec, calibration, _plain_analysis))


def closed_forms(model: Any, tokenizer: Any, sessions: Sequence[Tensor], settings: FitSettings) -> Iterator[Variant]:
    """Yield closed forms fitted to the same few sessions: as it is, and without weighting by sensitivity.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sessions: Token ids [N] int64 of sessions to fit to.
        settings: Settings of the fit.
    """
    for name, given in (
        ("closed form, few sessions", settings),
        ("the same without sensitivity", replace(settings, fisher_exponent=0.0)),
    ):
        yield Variant(name, fit_codec(model, tokenizer, sessions, given, lambda stage, done, total: None)[0])


@torch.no_grad()
def refitted(
    codec: TinyVAECodec,
    calibration: Sequence[KVSnapshot],
    change: Callable[[TinyVAE], object] = lambda vae: None,
    after: Callable[[TinyVAE], object] = lambda vae: None,
    *,
    predict: bool = True,
) -> TinyVAECodec:
    """Return a changed copy whose prediction, levels and tables are fitted again; `after` is done last."""
    fresh = TinyVAECodec(**codec.config_json())
    fresh.load_state_dict(copy.deepcopy(codec.state_dict()))
    fresh.eval()
    samples = []
    for group in range(len(fresh.groups)):
        vae = fresh.vae(group)
        change(vae)
        rows = [fresh.latents(snapshot, group) for snapshot in calibration]
        samples.append(calibrate_group(vae, rows, SAMPLE_ROWS, predict=predict))
        after(vae)
    pooled = torch.cat(samples)
    pick = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(0))
    fresh.store_tables(*build_tables(pooled[pick[:MOST_SAMPLES]]))
    return fresh


def _one_step(vae: TinyVAE) -> None:
    vae.token_offset.zero_()
    vae.age_offset.zero_()


def _no_prior(vae: TinyVAE) -> None:
    vae.prior.outward.store(torch.zeros_like(vae.prior.outward.dense))


def _no_predictor(vae: TinyVAE) -> None:
    assert vae.predictor is not None
    vae.predictor.silence()


def _no_layers(vae: TinyVAE) -> None:
    for block in vae.prior.blocks:
        assert isinstance(block, CausalBlock)
        block.outward.store(torch.zeros_like(block.outward.dense))


def _plain_analysis(vae: TinyVAE) -> None:
    start = 0
    metric = torch.zeros_like(vae.transform.metric.dense)
    for size in vae.config.blocks:
        metric[start : start + size, :size] = torch.eye(size)
        start += size
    vae.transform.store(vae.transform.synthesis.dense, metric)
