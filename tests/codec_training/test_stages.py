"""Laws of the trained stages, on a codec fitted to a tiny model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

pytest.importorskip("lightning", reason="the train extra is not installed")

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import harvest
from kvcompress.data.shards import HarvestSettings, Shards
from kvcompress.errors import InputError
from kvcompress.hf import capture
from kvcompress.hf.channels import to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot
from kvcompress_train.coding import coded_groups
from kvcompress_train.data import ShardSessions
from kvcompress_train.guard import PATIENCE_STEPS, Guard, TrainingError
from kvcompress_train.module import DivergenceStage, RateStage, StageModule
from kvcompress_train.recipe import CodecRecipe, Stage, read_recipe
from kvcompress_train.run import with_learned_parts
from kvcompress_train.tiers import mixed_tiers
from tests.codec.conftest import random_sessions
from tinyvae.neighbours import coding_passes
from tinyvae.offsets import PRIOR_ONLY
from tinyvae.predictor import LOWEST_TOLD

QP = 60


def fresh(codec: TinyVAECodec, layers: int = 1) -> TinyVAECodec:
    return with_learned_parts(codec, CodecRecipe(prior_layers=layers))


def loud(codec: TinyVAECodec) -> TinyVAECodec:
    """Return the codec with learned parts whose predictor guesses at random: something that must cancel out."""
    deeper = fresh(codec)
    predictor = deeper.vae(0).predictor
    assert predictor is not None
    shape = (len(predictor.outward.scales), predictor.guessed)
    predictor.outward.store(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    return deeper


def test_fresh_parts_change_nothing(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    deeper = fresh(codec, 2)
    assert deeper.vae(0).config.prior_layers == 2
    ids = snapshot.token_ids
    assert torch.equal(deeper.vae(0).prior(ids), codec.vae(0).prior(ids))
    assert torch.equal(deeper.symbols(snapshot, 0, QP)[0], codec.symbols(snapshot, 0, QP)[0])


def test_what_a_predictor_guesses_is_taken_away_and_added_back(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    """A guess moves symbols, and at fine steps no reconstruction, however wrong; files decode to the same bits."""
    guessing = loud(codec)
    assert not torch.equal(guessing.symbols(snapshot, 0, QP)[0], codec.symbols(snapshot, 0, QP)[0])
    fine, plain = (one.reconstruct(snapshot, 200).layers[0].keys for one in (guessing, codec))
    assert torch.allclose(fine, plain, atol=1e-2 * float(plain.abs().max()))
    again = TinyVAECodec(**guessing.config_json())
    again.load_state_dict(guessing.state_dict())
    decoded, direct = again.decode(guessing.encode(snapshot, QP)), guessing.reconstruct(snapshot, QP)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(decoded.layers, direct.layers, strict=True))


def test_a_guess_stays_sane_at_rates_no_training_saw(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    """A plan leaves tokens out by an offset below every level: their guess is that of the coarsest tokens."""
    guessing, ids = loud(codec).vae(0), snapshot.token_ids
    context = guessing.context(ids)
    lowest, none = (torch.full_like(ids, qp, dtype=torch.int32) for qp in (LOWEST_TOLD, PRIOR_ONLY))
    decoded = torch.zeros(len(ids) + 1, guessing.config.rank)
    for coding_pass in coding_passes(ids):
        coarse, left_out = (guessing.predicted(decoded, coding_pass, context, qps) for qps in (lowest, none))
        assert torch.equal(coarse, left_out)


def test_levels_do_not_depend_on_a_predictor(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    """No float decides a bit: what the network says never chooses a table."""
    assert torch.equal(loud(codec).symbols(snapshot, 0, QP)[1], codec.symbols(snapshot, 0, QP)[1])


def test_a_codec_without_a_predictor_names_none(codec: TinyVAECodec) -> None:
    """So its fingerprint is that of versions that had none."""
    assert "predictor_width" not in codec.config_json()["groups"][0]["config"]
    assert loud(codec).config_json()["groups"][0]["config"]["predictor_width"] == CodecRecipe().predictor_width


def test_training_sees_what_the_decoder_gives(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    """The channels that the loss is taken of are those of the decoded cache, whatever gradients pass."""
    trained = loud(codec)
    DivergenceStage(trained, unused_model(), CodecRecipe(), Stage(1, 1e-3, 1e-3))
    channels = channels_of(trained, snapshot, QP)
    decoded = to_channels(loud(codec).reconstruct(snapshot, QP), codec.groups[0], rope_of(snapshot.origin))
    assert torch.allclose(channels.detach(), decoded, atol=1e-3 * float(decoded.abs().max()))


def unused_model() -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


def channels_of(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int) -> torch.Tensor:
    (coded,) = coded_groups(codec, snapshot, qp)
    return codec.vae(0).synthesise(coded.context, coded.decoded)


def test_a_latent_of_symbol_zero_teaches_the_prior_and_a_coded_one_does_not(
    codec: TinyVAECodec,
    snapshot: KVSnapshot,
) -> None:
    gradients = []
    for qp in (0, 300):  # nothing is coded, everything is
        trained = fresh(codec)
        module = DivergenceStage(trained, unused_model(), CodecRecipe(), Stage(1, 1e-3, 1e-3))
        channels = channels_of(trained, snapshot, qp)
        # In the span of the latents: what lies beyond them the prior answers for at every QP.
        seen = channels @ trained.vae(0).transform.analysis
        seen.square().sum().backward()
        gradients.append(float(trained.vae(0).prior.outward.sharp.master.grad.norm()))
        assert module.configure_optimizers()
    assert gradients[1] < 0.05 * gradients[0]


def test_what_was_trained_is_what_is_kept(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    trained = fresh(codec)
    module = DivergenceStage(trained, unused_model(), CodecRecipe(), Stage(1, 1e-3, 1e-3))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01 * parameter.abs().mean())
    before = trained.vae(0).prior(snapshot.token_ids).detach().clone()
    kept = module.finish()
    assert not list(kept.parameters())
    assert torch.allclose(kept.vae(0).prior(snapshot.token_ids), before, atol=1e-2 * float(before.abs().max()))


@pytest.fixture(scope="module")
def shards(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    place = tmp_path_factory.mktemp("shards") / "shards"
    rows = [(str(number), ids) for number, ids in enumerate(random_sessions(6, 96))]
    settings = HarvestSettings(continuation_tokens=32, gradient_sessions=2)
    harvest(model, None, rows, place, lambda stage, done, total: None, settings=settings)
    return Shards(place)


def test_sessions_are_cut_anew_in_every_epoch_and_stay_what_the_model_said(
    shards: Shards, model: LlamaForCausalLM
) -> None:
    sessions, lengths = ShardSessions(shards, 16, seed=0), set()
    for epoch in range(4):
        sessions.epoch = epoch
        for index in range(len(shards)):
            one, whole = sessions[index], shards.session(index)
            tokens = one.snapshot.tokens
            lengths.add(tokens)
            assert tokens >= 32
            assert torch.equal(torch.cat([one.snapshot.token_ids, one.continuation]), whole[: tokens + 16])
            assert sessions[index].snapshot.tokens == tokens
    assert len(lengths) > 4
    exact = capture(model, one.snapshot.token_ids)
    assert torch.allclose(one.snapshot.layers[1].values.float(), exact.layers[1].values, atol=2e-3)


def test_without_a_seed_sessions_are_as_harvested(shards: Shards) -> None:
    assert {one.snapshot.tokens for one in map(ShardSessions(shards, 16).__getitem__, range(len(shards)))} == {64}


@pytest.mark.parametrize("mixed", [False, True])
def test_both_stages_lower_their_loss(
    codec: TinyVAECodec, model: LlamaForCausalLM, shards: Shards, mixed: bool
) -> None:
    """A few steps on one session at one QP: the gradients point downhill, also where tiers are mixed."""
    session, recipe = ShardSessions(shards, 16)[0], CodecRecipe()
    for make in (
        lambda one: RateStage(one, recipe, Stage(8, 3e-3)),
        lambda one: DivergenceStage(one, model, recipe, Stage(8, 1e-3, 1e-3)),
    ):
        module: StageModule = make(fresh(codec))
        optimizer, losses = module.configure_optimizers()["optimizer"], []
        for _ in range(8):
            chance = torch.Generator().manual_seed(3) if mixed else None
            optimizer.zero_grad()
            loss = module.loss(session, QP, chance)["loss"]
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < losses[0]


def test_the_analysis_follows_the_synthesis_after_some_steps(codec: TinyVAECodec) -> None:
    trained = fresh(codec)
    DivergenceStage(trained, unused_model(), CodecRecipe(analysis_steps=2), Stage(1, 1e-3, 1e-3))
    transform, seen = trained.vae(0).transform, []
    for _ in range(4):
        with torch.no_grad():
            transform.synthesis.sharp.master.mul_(1.5)
        seen.append(transform.analysis.clone())
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [True, False, True]


def test_what_a_stage_is_judged_by_does_not_hang_on_what_was_usual(
    codec: TinyVAECodec, model: LlamaForCausalLM, shards: Shards
) -> None:
    """Else every state of training would look like the last one: its divergence is as usual by then."""
    session = ShardSessions(shards, 16)[0]
    module = DivergenceStage(fresh(codec), model, CodecRecipe(), Stage(1, 1e-3, 1e-3)).eval()
    found = []
    for usual in (1e-4, 1.0):
        module.usual_nats.fill_(usual)
        with torch.no_grad():
            found.append((float(module.judged(session, QP)["loss"]), float(module.loss(session, QP, None)["loss"])))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("kind", ["rate", "divergence"])
def test_dropped_tokens_are_not_coded(
    codec: TinyVAECodec, model: LlamaForCausalLM, shards: Shards, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, session = [], ShardSessions(shards, 16)[0]

    def watched(codec: TinyVAECodec, snapshot: KVSnapshot, *more: Any) -> Any:
        held.append(len(snapshot.layers[0].positions))
        return coded_groups(codec, snapshot, *more)

    monkeypatch.setattr("kvcompress_train.module.coded_groups", watched)
    recipe, stage = CodecRecipe(), Stage(1, 1e-3, 1e-3)
    module = (
        RateStage(fresh(codec), recipe, stage)
        if kind == "rate"
        else DivergenceStage(fresh(codec), model, recipe, stage)
    )
    kept = [
        int(mixed_tiers(session.snapshot.tokens, torch.Generator().manual_seed(seed)).kept.sum()) for seed in range(6)
    ]
    for seed in range(6):
        module.loss(session, QP, torch.Generator().manual_seed(seed))
    assert held == kept
    assert min(kept) < session.snapshot.tokens


def test_a_table_that_is_not_trained_stays(codec: TinyVAECodec) -> None:
    trained = fresh(codec)
    module = RateStage(trained, CodecRecipe(train_table=False), Stage(1, 1e-3))
    before = trained.vae(0).prior.table.sharp.packed.clone()
    assert not list(trained.vae(0).prior.table.parameters())
    assert list(trained.vae(0).prior.outward.parameters())
    assert torch.equal(module.finish().vae(0).prior.table.sharp.packed, before)


def test_what_the_closed_form_found_moves_in_steps_of_its_own_size_and_fresh_parts_freely(codec: TinyVAECodec) -> None:
    trained = fresh(codec)
    module = RateStage(trained, CodecRecipe(train_table=False), Stage(1, 1e-2, prior_rate=1e-4))
    optimizer = module.configure_optimizers()["optimizer"]
    before = {name: p.detach().clone() for name, p in trained.named_parameters() if p.numel()}
    sum((p * torch.ones_like(p)).sum() for p in trained.parameters()).backward()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # the schedule warms up
    optimizer.step()
    after = dict(trained.named_parameters())
    for name, start in before.items():
        moved, size = float((after[name].detach() - start).abs().max()), float(start.square().mean().sqrt())
        wanted = 1e-2 if "blocks" in name or "predictor" in name else 1e-4 * size
        assert moved == pytest.approx(wanted, rel=0.01), name


@pytest.mark.parametrize(
    ("later", "told"),
    [((math.nan, 100.0, 50.0), "loss is nan"), ((1.0, 900.0, 50.0), "explodes"), ((1.0, 1.0, 0.001), "collapses")],
)
def test_runs_gone_astray_are_stopped_with_a_reason(later: tuple[float, float, float], told: str) -> None:
    guard = Guard()
    for _ in range(PATIENCE_STEPS):
        guard.check(1.0, 100.0, 50.0)

    def go_on() -> None:
        for _ in range(10 * PATIENCE_STEPS):
            guard.check(*later)

    with pytest.raises(TrainingError, match=told):
        go_on()


def test_an_ordinary_run_goes_on() -> None:
    guard = Guard()
    for step in range(10 * PATIENCE_STEPS):
        guard.check(1.0, 100.0 - 0.1 * step, 50.0)


def test_the_recipe_of_the_project_is_the_default() -> None:
    found = read_recipe("small")
    assert found == CodecRecipe()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour: blue", "colour"),
        ("rate_stage: {steps: many, learning_rate: 0.1}", "rate_stage.steps"),
        ("rate_stage: {learning_rate: 0.1}", "lacks"),
        ("lowest_qp: 90", "lowest QP"),
        ("logger: paper", "paper"),
        ("[1, 2]", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as refused:
        read_recipe(path)
    assert "\n" not in str(refused.value)
