"""Calibration: nothing is promised that was not measured on all sessions, whatever the codec does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcompress.fit.calibrate as calibration
from kvcompress.codec.directory import load_codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.promise import Promise, Setting
from kvcompress.codec.quality import weightless
from kvcompress.codec.settings import NOTHING_STATED
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.fit.calibrate import TooFewSessionsError, calibrate, trials_from_sessions
from kvcompress.fit.ledger import Facts, Losses
from kvcompress.fit.search import FINEST, Sessions
from kvcompress.fit.search import Path as RatePath
from kvcompress.fit.trials import Bench, compared, context_worth, stored_as
from kvcompress.fit.verdict import stresses
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.format.session import own_sections
from kvcompress.hf import load_model, restore
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.metrics.fidelity import TIERS, fidelity, kl_nats, short_context_logits
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import random_sessions


def encoded_in(codec: TinyVAECodec, snapshot: KVSnapshot, setting: Setting) -> Encoded:
    if setting.qp is None:
        return weightless(snapshot, setting, NOTHING_STATED)
    return codec.encode(snapshot, setting.qp, residual_qp=setting.residual_qp)


Loser = Callable[[int, Setting], Losses]


class Rehearsal:
    """A bench without a model: losses are told by a function of session and setting."""

    def __init__(self, sessions: int, loser: Loser) -> None:
        self.trials, self.loser = [None] * sessions, loser
        facts = {session: Facts(0.7, 1000, 256) for session in range(sessions)}
        self.ledger = SimpleNamespace(facts=facts, losses=dict[tuple[int, Setting], Losses]())

    def measure(self, session: int, settings: Sequence[Setting]) -> None:
        for setting in settings:
            self.ledger.losses[session, setting] = self.loser(session, setting)


def rehearsed(loser: Loser, sessions: int = 40) -> tuple[dict[str, Promise], Rehearsal]:
    bench = Rehearsal(sessions, loser)
    usable = [SimpleNamespace(continuation=torch.zeros(64))] * sessions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "Bench", lambda *arguments: bench)
        return calibrate(None, None, usable), bench  # type: ignore[arg-type]


def falling(session: int, setting: Setting, floor: float = 0.0, noise: float = 0.2) -> Losses:
    """KL that halves every eight QPs down to a floor, sessions and neighbouring QPs apart by noise."""
    if setting.qp is None:
        return Losses(0.0, 0.0)
    rough = random.Random(f"{session} {setting}").lognormvariate(0, noise) * (1 + session % 5) / 3
    residual = 0.02 if setting.kind == "residual" else 1.0
    kl = residual * (0.2 * 2 ** (-setting.qp / 8) + floor) * rough
    return Losses(kl, min(1.0, 0.25 * math.sqrt(kl)))


def holds(bench: Rehearsal, setting: Setting, tier: int) -> bool:
    """Whether all sessions saw a setting and keep a tier there."""
    everyone = range(len(bench.trials))
    if any((session, setting) not in bench.ledger.losses for session in everyone):
        return False
    losses = [bench.ledger.losses[session, setting] for session in everyone]
    return max(stresses(losses, list(bench.ledger.facts.values()), TIERS[tier]).values()) <= 1


def test_a_good_codec_is_promised_latents_near_the_coarsest_rate_that_holds() -> None:
    found, bench = rehearsed(falling)
    measurements = len(bench.ledger.losses)
    assert measurements <= 500
    for place, tier in enumerate(TIERS):
        setting = found[tier.name].setting
        assert setting.kind == "latents"
        assert holds(bench, setting, place)
        assert setting.qp is not None
        coarser = Setting("latents", max(0, setting.qp - 12))
        for session in range(40):
            bench.measure(session, [coarser])
        assert not holds(bench, coarser, place)
    assert found["fallback"].setting == Setting("int8")
    qps = [found[tier.name].qp or 0 for tier in TIERS]
    assert qps == sorted(qps, reverse=True)


@pytest.mark.parametrize("floor", [0.008, 0.03, 0.12])
def test_what_latents_do_not_reach_is_kept_with_a_residual(floor: float) -> None:
    found, bench = rehearsed(lambda session, setting: falling(session, setting, floor))
    for place, tier in enumerate(TIERS):
        assert holds(bench, found[tier.name].setting, place)
    assert found["transparent"].setting.kind == "residual"
    assert found["transparent"].residual_qp == (found["transparent"].qp or 0) + 12
    assert found["usable"].setting.kind == ("residual" if floor == 0.12 else "latents")


def test_a_codec_that_holds_nowhere_promises_what_is_lossless() -> None:
    def hopeless(session: int, setting: Setting) -> Losses:
        return Losses(0.0, 0.0) if setting.kind == "lossless" else Losses(3.0, 0.9)

    found, _ = rehearsed(hopeless)
    assert {name: promise.setting for name, promise in found.items()} == {
        name: Setting("lossless") for name in ("transparent", "high", "usable")
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(19, 60), st.floats(0, 0.4), st.floats(0, 2.5), st.integers(0, 10**6))
def test_whatever_the_losses_what_is_promised_holds_on_all_sessions(
    sessions: int, floor: float, noise: float, seed: int
) -> None:
    def wild(session: int, setting: Setting) -> Losses:
        jump = random.Random(f"{seed} {setting}").choice([1.0, 1.0, 1.0, 4.0])  # not monotone
        kl = jump * falling(session + seed, setting, floor, noise).kl_nats
        return Losses(kl, min(1.0, 0.2 * math.sqrt(kl)))

    found, bench = rehearsed(wild, sessions)
    for place, tier in enumerate(TIERS):
        setting = found[tier.name].setting
        assert setting.kind == "lossless" or holds(bench, setting, place)


def test_a_rate_that_holds_between_others_that_do_not_is_not_taken() -> None:
    def lucky(session: int, setting: Setting) -> Losses:
        good = setting.qp is None or setting.qp in (40, 57, 60) or setting.qp > 90
        return Losses(0.001 if good else 0.5, 0.01)

    sessions = Sessions(Rehearsal(40, lucky), lambda stage, done, total: None)  # type: ignore[arg-type]
    chosen = RatePath("latents", sessions).coarsest(TIERS)
    assert all((setting.qp or 0) > 90 for setting in chosen.values())
    assert all((setting.qp or 0) <= FINEST for setting in chosen.values())


@pytest.mark.parametrize(("count", "tokens", "said"), [(3, 128, "Give 16 more of at least 128"), (30, 127, "Give 19")])
def test_too_few_sessions_say_how_many_more(
    model: Any, codec: TinyVAECodec, count: int, tokens: int, said: str
) -> None:
    usable = count if tokens >= 128 else 0
    with pytest.raises(TooFewSessionsError, match=rf"{usable} sessions of at least 128 tokens are too few.*{said}"):
        calibrate(model, codec, trials_from_sessions(model, random_sessions(count, tokens)))


def test_a_session_is_cut_before_its_last_tokens_or_in_the_middle(model: Any) -> None:
    long, short = trials_from_sessions(model, [*random_sessions(1, 300), *random_sessions(1, 90)], None, 100)
    assert (long.snapshot.tokens, len(long.continuation)) == (200, 100)
    assert (short.snapshot.tokens, len(short.continuation)) == (45, 45)
    assert torch.equal(long.snapshot.layers[0].keys, long.snapshot.layers[0].keys)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0])
def test_kl_in_float32_is_within_a_millionth_of_the_one_in_float64(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = 4 * torch.randn(40, 49152, generator=generator)
    decoded = exact + scale * torch.randn(40, 49152, generator=generator)
    plain = float(kl_nats(exact, decoded).mean())
    found, same = compared(torch.log_softmax(exact, -1), decoded)
    assert found == pytest.approx(plain, abs=1e-6, rel=1e-4)
    assert same == pytest.approx(float((exact.argmax(-1) == decoded.argmax(-1)).double().mean()), abs=0.03)
    assert compared(torch.log_softmax(exact, -1), exact) == (pytest.approx(0, abs=1e-9), 1.0)


def test_kl_of_impossible_tokens_is_that_of_float64() -> None:
    exact, decoded = torch.zeros(2, 8), torch.zeros(2, 8)
    exact[:, 0] = -math.inf
    found, _ = compared(torch.log_softmax(exact, -1), decoded)
    assert found == pytest.approx(float(kl_nats(exact, decoded).mean()), abs=1e-7)


@pytest.mark.parametrize("tokens", [10, 31, 32, 33, 40])
def test_context_worth_is_that_of_every_eighth_position(model: Any, tokens: int) -> None:
    ids = random_sessions(1, tokens + 66, seed=5)[0]
    head, tail = ids[:tokens], ids[tokens:]
    every = short_context_logits(model, head, tail)
    assert torch.allclose(short_context_logits(model, head, tail, every=8), every[::8], atol=1e-5)
    exact = torch.log_softmax(torch.randn(66, every.shape[1], generator=torch.Generator().manual_seed(1)), -1)
    plain = float(kl_nats(exact, every)[::8].mean())
    assert context_worth(model, head, tail, exact) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("setting", [Setting("latents", 70), Setting("residual", 40, 52), Setting("lossless")])
def test_what_is_measured_is_what_a_file_gives_back(
    codec: TinyVAECodec, snapshot: KVSnapshot, setting: Setting
) -> None:
    encoded = encoded_in(codec, snapshot, setting)
    decoded = (LosslessCodec() if setting.kind == "lossless" else codec).decode(encoded)
    measured, file = stored_as(snapshot, setting, codec.analyse(snapshot))
    assert (file is None) == (setting.qp is None)
    if file is not None:
        assert {name: file.sections[name] for name in own_sections(file)} == {
            name: encoded.sections[name] for name in own_sections(encoded)
        }
        assert len(to_bytes(file)) == pytest.approx(len(to_bytes(encoded)), abs=40)  # a header says more settings
    for ours, theirs in zip(measured.layers, decoded.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def ruined(codec: TinyVAECodec) -> TinyVAECodec:
    """A codec whose latents span directions that mean nothing: none of its QPs comes near the cache."""
    state, generator = codec.state_dict(), torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if "synthesis" in name and name.endswith("packed"):
            state[name] = torch.randint(0, 256, tensor.shape, generator=generator).to(tensor.dtype)
    bad = TinyVAECodec(**codec.config_json())
    bad.load_state_dict(state)
    return bad.eval()


@pytest.fixture(scope="module")
def bad(codec: TinyVAECodec) -> TinyVAECodec:
    return ruined(codec)


@pytest.fixture(scope="module")
def found(model: Any, bad: TinyVAECodec, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Promise], Path]:
    """What the ruined codec is promised to keep, and the file of its measurements."""
    place = tmp_path_factory.mktemp("ledger") / "trials.jsonl"
    trials = trials_from_sessions(model, random_sessions(20, 128, seed=3))
    return calibrate(model, bad, trials, resume_file=place), place


def confirm(model: Any, codec: TinyVAECodec, promises: dict[str, Promise], sessions: Sequence[torch.Tensor]) -> None:
    """Measure promises on other sessions, through bytes and the measures of a report."""
    for tier in TIERS:
        kept, worth, top1 = list[float](), list[float](), list[float]()
        for trial in trials_from_sessions(model, sessions):
            kv = trial.snapshot
            encoded = encoded_in(codec, kv, promises[tier.name].setting)
            decoded = (LosslessCodec() if encoded.codec == "lossless" else codec).decode(encoded)
            caches = (restore(kv, model), restore(decoded, model))
            report = fidelity(model, *caches, kv.token_ids, trial.continuation)
            kept.append(report.kl_nats)
            worth.append(report.context_worth_nats)
            top1.append(report.top1_agreement)
        assert fmean(kept) <= tier.max_kl_nats
        assert sum(kept) <= tier.max_context_lost * sum(worth)
        assert fmean(top1) >= tier.min_top1_agreement


def test_a_bad_codec_promises_only_what_other_sessions_confirm(
    model: Any, bad: TinyVAECodec, found: tuple[dict[str, Promise], Path]
) -> None:
    promises, _ = found
    assert all(promises[tier.name].setting.kind in ("residual", "lossless") for tier in TIERS)
    confirm(model, bad, promises, random_sessions(12, 128, seed=77))


def test_a_killed_calibration_goes_on_to_the_same_result(
    model: Any, bad: TinyVAECodec, found: tuple[dict[str, Promise], Path], tmp_path: Path
) -> None:
    promises, place = found
    whole = place.read_text()
    (tmp_path / "cut.jsonl").write_text(whole[: 3 * len(whole) // 4])  # in the middle of a line
    trials = trials_from_sessions(model, random_sessions(20, 128, seed=3))
    assert calibrate(model, bad, trials, resume_file=tmp_path / "cut.jsonl") == promises
    assert sorted((tmp_path / "cut.jsonl").read_text().splitlines()) == sorted(whole.splitlines())


def test_measurements_of_another_codec_or_of_other_sessions_are_begun_anew(
    model: Any, codec: TinyVAECodec, bad: TinyVAECodec, tmp_path: Path
) -> None:
    trials, place = trials_from_sessions(model, random_sessions(2, 128, seed=3)), tmp_path / "trials.jsonl"
    Bench(model, bad, trials, place).measure(0, [Setting("latents", 9)])
    assert list(Bench(model, bad, trials, place).ledger.losses) == [(0, Setting("latents", 9))]
    assert not Bench(model, bad, trials[:1], place).ledger.losses
    Bench(model, bad, trials, place).measure(0, [Setting("latents", 9)])
    assert not Bench(model, codec, trials, place).ledger.losses


@pytest.mark.slow
def test_a_ruined_codec_of_the_bundled_model_promises_only_what_other_sessions_confirm() -> None:
    model, tokenizer = load_model(find_checkpoint("reference-lm"))
    sessions = [ids for _, ids in tokenized_sessions(model, tokenizer, Path("examples/sessions.jsonl"))]
    bad = ruined(load_codec())
    promises = calibrate(model, bad, trials_from_sessions(model, [ids[:640] for ids in sessions[:40]], tokenizer, 128))
    assert promises["transparent"].setting.kind in ("residual", "lossless")
    confirm(model, bad, promises, [ids[:640] for ids in sessions[40:]])
