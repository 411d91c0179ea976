"""What each scorer ranks highest follows from its definition, computed here a second time and plainly."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError, MismatchError
from kvcompress.hf import capture
from kvcompress.hf.rope import rope_of
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.key_similarity import novelty
from kvcompress.prune.evidence.record import KINDS, Evidence, QueryStatistics, ranks
from kvcompress.prune.scorers.concert import Concert
from kvcompress.prune.scorers.random import SCORER as RANDOM
from kvcompress.prune.scorers.registry import SCORERS, find_scorer, parts_of, require_scores, scored
from kvcompress.prune.scorers.salience import PARTS, Salience
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.codec.conftest import random_sessions
from tests.hf.families import model_of, session


@pytest.fixture(scope="module")
def evidence(model: Any, codec: TinyVAECodec, snapshot: KVSnapshot) -> Evidence:
    return collect(model, snapshot, KINDS, codec=codec)


def eager_attention(model: Any, ids: Tensor) -> list[Tensor]:
    """Probabilities [heads, T, T] of each layer, by one plain pass."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        rows = [layer[0] for layer in model(ids[None], output_attentions=True).attentions]
    model.set_attn_implementation(before)
    return rows


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_gives_each_token_one_finite_number_and_the_same_one_again(name: str, evidence: Evidence) -> None:
    scorer = find_scorer(name)
    assert scorer.name == name
    first, again = scored(scorer, evidence), scored(scorer, evidence)
    assert first.shape == (evidence.tokens,)
    assert bool(torch.isfinite(first).all())
    assert torch.equal(first, again)
    floored = name == "concert"  # all below its floor are alike
    assert len(set(first.tolist())) > (2 if floored else evidence.tokens // 2)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_says_what_it_needs(name: str, model: Any, codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    scorer = find_scorer(name)
    enough = collect(model, snapshot, scorer.needs, codec=codec)
    assert bool(torch.isfinite(scored(scorer, enough)).all())
    if scorer.needs:
        with pytest.raises(InputError, match="was not collected"):
            scored(scorer, Evidence(snapshot))


@pytest.mark.parametrize("tokens", [0, 1, 2, 5])
@pytest.mark.parametrize("name", SCORERS)
def test_short_sessions_work(name: str, tokens: int, model: Any, codec: TinyVAECodec) -> None:
    snapshot = capture(model, random_sessions(1, 8)[0][:tokens])
    scorer = find_scorer(name)
    assert scored(scorer, collect(model, snapshot, scorer.needs, codec=codec)).shape == (tokens,)


def test_surprise_is_minus_log_p_of_what_came(model: Any, snapshot: KVSnapshot, evidence: Evidence) -> None:
    with torch.no_grad():
        logs = model(snapshot.token_ids[None]).logits[0].log_softmax(-1)
    expected = [0.0] + [-float(logs[t, snapshot.token_ids[t + 1]]) for t in range(snapshot.tokens - 1)]
    assert evidence.require_surprise().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_window_attention_is_that_of_the_last_queries(family: str) -> None:
    model, ids = model_of(family), session(60)
    found = collect(model, capture(model, ids), ["window_attention"]).require_window_attention()
    for seen, rows in zip(found, eager_attention(model, ids), strict=True):
        assert torch.allclose(seen, rows[:, -32:].sum(1), atol=1e-4)


def test_windows_are_observed_where_layers_slide() -> None:
    model, ids = model_of("mistral_window"), session(60)
    found = collect(model, capture(model, ids), ["window_attention", "queries"])
    for seen, rows in zip(found.require_window_attention(), eager_attention(model, ids), strict=True):
        assert torch.allclose(seen, rows[:, -32:].sum(1), atol=1e-4)


def test_reading_again_sees_the_highest_attention_that_the_repetition_pays(model: Any, snapshot: KVSnapshot) -> None:
    found = collect(model, snapshot, ["reconstruction"]).require_reconstruction()
    twice = torch.cat([snapshot.token_ids, snapshot.token_ids])
    for seen, rows in zip(found, eager_attention(model, twice), strict=True):
        assert torch.allclose(seen, rows[:, snapshot.tokens :, : snapshot.tokens].amax(1), atol=1e-4)


def test_sensitivity_is_high_where_a_change_moves_the_output(
    model: Any, codec: TinyVAECodec, snapshot: KVSnapshot, evidence: Evidence
) -> None:
    """Of two tokens disturbed alike, the more sensitive one changes the predictions of what comes more, on average."""
    from kvcompress.hf import restore
    from kvcompress.hf.sampling import sample_continuations
    from kvcompress.metrics.fidelity import continuation_logits, kl_nats

    order = evidence.require_sensitivity().argsort()
    future = sample_continuations(model, snapshot, count=1, tokens=32, seed=5)[0]
    exact = continuation_logits(model, restore(snapshot, model), future, snapshot.tokens)

    def damage(places: Tensor) -> float:
        noise = torch.Generator().manual_seed(0)
        layers = []
        for kv in snapshot.layers:
            values = kv.values.clone()
            values[:, places] += 0.3 * torch.randn(values[:, places].shape, generator=noise)
            layers.append(LayerKV(kv.keys, values, kv.positions))
        disturbed = dataclasses.replace(snapshot, layers=tuple(layers))
        logits = continuation_logits(model, restore(disturbed, model), future, snapshot.tokens)
        return float(kl_nats(exact, logits).mean())

    assert damage(order[-20:]) > 1.1 * damage(order[:20])


def test_expected_attention_of_queries_without_spread_is_their_softmax(snapshot: KVSnapshot) -> None:
    mean = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    statistics = tuple(QueryStatistics(mean, torch.zeros(4, 16, 16), 0.25) for _ in snapshot.layers)
    found = find_scorer("expected_attention").score(Evidence(snapshot, queries=statistics))
    rope, total = rope_of(snapshot.origin), torch.zeros(snapshot.tokens)
    positions = torch.arange(snapshot.tokens, snapshot.tokens + 128)
    for index, layer in enumerate(snapshot.layers):
        turned = rope.redo(index, mean[:, None].expand(4, 128, 16), positions).mean(1)
        for head in range(4):
            weights = torch.softmax(layer.keys[head // 2] @ turned[head] * 0.25, 0)
            total += weights * layer.values[head // 2].norm(dim=1) / 4 / len(snapshot.layers)
    assert torch.allclose(found, total, atol=1e-5)


def test_norms_and_differences_are_those_of_the_cache(snapshot: KVSnapshot) -> None:
    single = dataclasses.replace(
        snapshot,
        layers=snapshot.layers[:1],
        origin=dataclasses.replace(
            snapshot.origin,
            layer_kinds=snapshot.origin.layer_kinds[:1],
            rope_layers=snapshot.origin.rope_layers[:1],
        ),
    )
    layer = single.layers[0]
    keys = sum(-layer.keys[h].norm(dim=1) for h in range(2))
    values = sum(layer.values[h].norm(dim=1) for h in range(2))
    for name, plain in (("key_norm", keys), ("value_norm", values)):
        assert torch.equal(find_scorer(name).score(Evidence(single)).argsort(), plain.argsort())
    found = find_scorer("key_difference").score(Evidence(single))
    for t in (0, 7, 79):
        cosines = []
        for head in layer.keys:
            units = head / head.norm(dim=1, keepdim=True)
            anchor = units.mean(0)
            cosines.append(float(units[t] @ anchor / anchor.norm()))
        assert float(found[t]) == pytest.approx(-sum(cosines) / 2, abs=1e-4)


def test_a_repeated_token_is_not_new(model: Any) -> None:
    ids = torch.cat([random_sessions(1, 30)[0], random_sessions(1, 30)[0]])
    found = novelty(Evidence(capture(model, ids)))
    assert float(found[0]) == 1.0
    assert float(found[:30].mean()) > float(found[30:].mean()) + 0.05


def test_the_concert_weighs_its_parts_and_drops_below_the_floor(evidence: Evidence) -> None:
    concert = Concert(floor=0.02)
    parts = concert.parts(evidence)
    found = concert.score(evidence)
    for t in range(0, evidence.tokens, 9):
        r, s, n = (float(parts[name][t]) for name in ("recency", "similarity", "novelty"))
        expected = (0.35 * r + 0.50 * s + 0.08 * n) / 0.93 if s >= 0.02 else 0.0
        assert float(found[t]) == pytest.approx(expected, abs=1e-6)
    assert 0 < int((found == 0).sum()) < evidence.tokens


def test_recency_is_by_tokens_or_by_the_clock(evidence: Evidence) -> None:
    by_tokens = Concert(tau_tokens=10).recencies(evidence)
    assert float(by_tokens[-1]) == 1.0
    assert float(by_tokens[-11]) == pytest.approx(math.exp(-1))
    ages = torch.linspace(43_200, -60, evidence.tokens)
    by_clock = Concert().recencies(dataclasses.replace(evidence, ages_seconds=ages))
    assert float(by_clock[0]) == pytest.approx(math.exp(-2))
    assert float(by_clock[-1]) == 1.0


@pytest.mark.parametrize("wrong", [{"recency": -0.1}, {"recency": 0, "similarity": 0, "novelty": 0}, {"tau_tokens": 0}])
def test_weights_that_cannot_be_normalised_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="concert"):
        Concert(**wrong)  # type: ignore[arg-type]


def test_salience_shows_its_five_parts_and_adds_them_up(evidence: Evidence) -> None:
    weights = {"surprise": 0.1, "novelty": 0.2, "arousal": 0.3, "reward": 0.4, "conflict": 0.5}
    scorer = Salience(weights)
    parts = parts_of(scorer, evidence)
    assert tuple(parts) == PARTS
    assert all(0 <= float(part.min()) <= float(part.max()) <= 1 for part in parts.values())
    assert torch.allclose(scorer.score(evidence), sum(weights[name] * parts[name] for name in PARTS), atol=1e-6)


def test_ranks_are_shares_below_with_ties_in_the_middle() -> None:
    assert ranks(torch.tensor([5.0, 1.0, 3.0, 3.0, 9.0])).tolist() == [0.75, 0.0, 0.375, 0.375, 1.0]


def test_the_control_depends_on_the_tokens_alone(model: Any, snapshot: KVSnapshot) -> None:
    other = capture(model, random_sessions(1, 80, seed=10)[0])
    assert torch.equal(RANDOM.score(Evidence(snapshot)), RANDOM.score(Evidence(snapshot)))
    assert not torch.equal(RANDOM.score(Evidence(snapshot)), RANDOM.score(Evidence(other)))


def test_scores_of_the_wrong_length_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3,\) do not fit 4 tokens"):
        require_scores(torch.zeros(3), 4, "mine")
    with pytest.raises(InputError, match="NaN"):
        require_scores(torch.tensor([1.0, math.nan]), 2, "mine")


def test_unknown_scorers_and_evidence_are_refused(model: Any, snapshot: KVSnapshot) -> None:
    with pytest.raises(InputError, match=r"unknown scorer 'snarc'.*salience"):
        find_scorer("snarc")
    with pytest.raises(InputError, match="unknown evidence: taste"):
        collect(model, snapshot, ["taste"])


def test_evidence_is_of_the_recording_model_and_of_whole_caches(snapshot: KVSnapshot) -> None:
    with pytest.raises(MismatchError):
        collect(model_of("llama"), snapshot, ["surprise"])
    model = model_of("llama")
    whole = capture(model, session(20))
    layers = tuple(LayerKV(kv.keys[:, 4:], kv.values[:, 4:], kv.positions[4:]) for kv in whole.layers)
    with pytest.raises(InputError, match="pruned already"):
        collect(model, dataclasses.replace(whole, layers=layers), ["surprise"])


def test_collecting_leaves_the_model_as_it_was(model: Any, codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    before = model.config._attn_implementation, {name: p.clone() for name, p in model.named_parameters()}
    collect(model, snapshot, KINDS, codec=codec)
    assert model.config._attn_implementation == before[0]
    assert all(torch.equal(p, before[1][name]) and p.grad is None for name, p in model.named_parameters())
