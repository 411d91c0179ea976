"""Training a codec that leaves layers to the model sees what its decoder will see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvcompress.channels import to_channels
from kvcompress.codec import TinyVAECodec, rope_of
from kvcompress.hf import capture
from tests.codec.conftest import random_sessions, tiny_model
from tests.codec.test_recompute import fitted

lightning = pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def partial() -> TinyVAECodec:
    return fitted(tiny_model(), 1)


def test_channels_in_training_are_those_of_the_decoder(partial: TinyVAECodec) -> None:
    from train.codec.module import coded_channels

    snapshot = capture(tiny_model(), random_sessions(1, 60, seed=4)[0])
    for rate in (20, 80):
        _, _, channels = coded_channels(partial, 0, snapshot, rate)
        decoded = to_channels(partial.reconstruct(snapshot, rate), (2,), rope_of(snapshot.origin))
        assert torch.allclose(channels, decoded, atol=1e-4)


def test_both_stages_train_what_known_layers_tell(partial: TinyVAECodec, tmp_path: Path) -> None:
    import copy

    from datasets import Dataset

    from train.codec.data import harvest_channels
    from train.codec.module import DivergenceStage, RateStage
    from train.codec.recipe import CodecRecipe, Stage

    model, recipe = tiny_model(), CodecRecipe()
    ids = random_sessions(1, 80, seed=5)[0]
    rows = Dataset.from_list([{"id": "a", "token_ids": ids.tolist()}])
    shard = harvest_channels(model, partial, rows, tmp_path, lambda stage, done, total: None)[0]
    assert shard["known.0"].shape == (80, 128)  # keys and values of both layers that are recomputed
    rate = RateStage(copy.deepcopy(partial), recipe, Stage(1, 1e-3))
    bits, _ = rate._bits([shard], 40)
    divergence = DivergenceStage(copy.deepcopy(partial), model, recipe, Stage(1, 1e-3, 1e-3))
    spent, _, nats = divergence._session(ids, 60, 40)
    for stage, loss in ((rate, bits.mean()), (divergence, spent.mean() + nats)):
        loss.backward()
        master = stage.codec.vae(0).prior.known.master
        assert float(master.grad.abs().sum()) > 0
