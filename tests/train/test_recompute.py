"""Training a codec that leaves layers to the model sees what its decoder will see."""

from __future__ import annotations

import pytest
import torch

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hf import capture
from kvcompress.hf.channels import to_channels
from kvcompress.hf.rope import rope_of
from tests.codec.conftest import random_sessions, tiny_model
from tests.codec.test_recompute import fitted

lightning = pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def partial() -> TinyVAECodec:
    return fitted(tiny_model(), 1)


def test_channels_in_training_are_those_of_the_decoder(partial: TinyVAECodec) -> None:
    from kvcompress_train.coding import coded_groups

    snapshot = capture(tiny_model(), random_sessions(1, 60, seed=4)[0])
    for qp in (20, 80):
        (coded,) = coded_groups(partial, snapshot, qp)
        channels = partial.vae(0).synthesise(coded.context, coded.decoded)
        decoded = to_channels(partial.reconstruct(snapshot, qp), (2,), rope_of(snapshot.origin))
        assert torch.allclose(channels, decoded, atol=1e-4)


def test_both_stages_train_what_known_layers_tell(partial: TinyVAECodec) -> None:
    import copy

    from kvcompress_train.data import CachedSession
    from kvcompress_train.module import DivergenceStage, RateStage
    from kvcompress_train.recipe import CodecRecipe, Stage

    model, recipe = tiny_model(), CodecRecipe()
    ids = random_sessions(1, 80, seed=5)[0]
    session = CachedSession(capture(model, ids[:60]), ids[60:])
    qp = RateStage(copy.deepcopy(partial), recipe, Stage(1, 1e-3))
    divergence = DivergenceStage(copy.deepcopy(partial), model, recipe, Stage(1, 1e-3, 1e-3))
    for stage in (qp, divergence):
        stage.loss(session, 40, None)["loss"].backward()
        known = stage.codec.vae(0).prior.known
        assert known is not None
        assert float(known.master.grad.abs().sum()) > 0
