"""Plans keep to their budget and their guarantees, lose the least they can, and are the same every time."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcompress.codec.exact_tokens import WithExact
from kvcompress.codec.registry import load_snapshot
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.format.container import from_bytes, load, save, to_bytes
from kvcompress.hf import capture
from kvcompress.metrics.sampled_kl import Judge
from kvcompress.prune.allocate import CHOICES, Costs, allocate, foreseen_damage, measure_costs, offsets_of
from kvcompress.prune.anchors import Anchor
from kvcompress.prune.constraints import GUARANTEES, Constraints, choose_kept, drop, floor_of
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.history import History, Record, load_history, save_history
from kvcompress.prune.planner import Planner
from kvcompress.prune.scorers.registry import find_scorer, scored
from kvcompress.prune.search import ONE_TIER, QP_STEPS, CandidateSearch, one_tier_kl
from kvcompress.prune.session import Asked, SessionPlanner, named_guarantees
from kvcompress.prune.table import load_table, save_table, stored_tiers, table_of
from kvcompress.prune.tiers import Tier, tier_named
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import random_sessions
from tests.hf.families import model_of, session

QP = 60


def no_floor(tokens: int) -> Tensor:
    return torch.zeros(tokens, dtype=torch.int64)


@pytest.fixture(scope="module")
def score(model: Any, codec: TinyVAECodec, snapshot: KVSnapshot) -> Tensor:
    scorer = find_scorer("output_sensitivity")
    return scored(scorer, collect(model, snapshot, scorer.needs, codec=codec))


def planner(
    codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor, constraints: Constraints | None = None
) -> Planner:
    return Planner(codec, snapshot, "output_sensitivity", score, constraints or Constraints(no_floor(snapshot.tokens)))


costs = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0.01, 9)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(costs, st.floats(0.01, 30))
def test_no_plan_of_as_few_bits_has_less_damage(rows: list[tuple[float, float, float]], weight: float) -> None:
    more, finest, importance = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    bits = torch.stack([torch.zeros_like(more), more, more + finest])
    errors = torch.stack([torch.full_like(more, 4.0), torch.ones_like(more), torch.full_like(more, 0.1)])
    tried = Costs(0, bits, errors)
    tiers = allocate(tried, importance, weight, no_floor(len(rows)))
    counts = torch.bincount(tiers - int(CHOICES[0]), minlength=3).double()
    side = -torch.log2((counts + 0.5) / (counts.sum() + 1.5))
    spent = float((bits + side[:, None]).gather(0, (tiers - 1)[None]).sum())
    lost = foreseen_damage(tried, importance, tiers)
    for other in product((1, 2, 3), repeat=len(rows)):
        chosen = torch.tensor(other)
        their_bits = float((bits + side[:, None]).gather(0, (chosen - 1)[None]).sum())
        if their_bits < spent - 1e-6 and set(other) <= set(tiers.tolist()):
            assert foreseen_damage(tried, importance, chosen) >= lost - 1e-6


def test_more_weight_costs_more_bits_and_loses_less(codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor) -> None:
    plans = [planner(codec, snapshot, score).plan(QP, weight) for weight in (1.0, 8.0, 64.0, 4096.0)]
    bits = [float(plan.bits.sum()) for plan in plans]
    damages = [plan.damage for plan in plans]
    assert bits == sorted(bits)
    assert damages == sorted(damages, reverse=True)
    assert bits[0] < bits[-1]


def test_tokens_of_equal_cost_and_worth_get_the_lower_tier() -> None:
    alike = Costs(0, torch.zeros(3, 5, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64))
    side_of_none = allocate(alike, torch.ones(5, dtype=torch.float64), 0.0, no_floor(5))
    assert side_of_none.tolist() == [int(Tier.PRIOR)] * 5


def test_what_is_foreseen_is_what_a_file_of_one_tier_costs(codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    tried = measure_costs(codec, snapshot, QP)
    for row, tier in enumerate(CHOICES):
        offsets = offsets_of(torch.full((snapshot.tokens,), int(tier)))
        assert tried.bits[row].tolist() == pytest.approx(codec.token_bits(snapshot, QP, offsets))
    assert float(tried.bits[0].sum()) == 0


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_a_file_keeps_to_its_bytes_and_comes_near(
    share: float, codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor
) -> None:
    single = len(to_bytes(codec.encode(snapshot, QP)))
    least = planner(codec, snapshot, score).smallest(QP).file_bytes
    most = least + int(share * (single - least))
    found = planner(codec, snapshot, score).within(QP + 12, most)
    assert found is not None
    assert 0.95 * most <= len(to_bytes(found.encoded)) == found.file_bytes <= most
    again = planner(codec, snapshot, score).within(QP + 12, most)
    assert again is not None
    assert to_bytes(again.encoded) == to_bytes(found.encoded)


@pytest.mark.parametrize("keep_fraction", [None, 0.5])
def test_a_planned_file_says_its_plan_and_decodes(
    keep_fraction: float | None, codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor, tmp_path: Path
) -> None:
    floor = no_floor(80)
    floor[5:9], floor[20] = int(Tier.FINE), int(Tier.EXACT)
    plans = planner(codec, snapshot, score, Constraints(floor, keep_fraction))
    plan = plans.plan(QP, 20.0)
    found = plans.encode(plan)
    save(tmp_path / "a.kvz", found.encoded)
    stored = load(tmp_path / "a.kvz")
    decoded = WithExact(codec).decode(stored)
    assert torch.equal(stored_tiers(stored, decoded), plan.tiers)
    assert bool((plan.tiers >= floor).all())
    kept = torch.nonzero(plan.tiers > int(Tier.DROPPED))[:, 0]
    assert len(kept) == (80 if keep_fraction is None else 40)
    for ours, exact in zip(decoded.layers, snapshot.layers, strict=True):
        assert torch.equal(ours.positions, kept)
        place = int((kept == 20).nonzero())
        assert torch.equal(ours.keys[:, place], exact.keys[:, 20])
        assert torch.equal(ours.values[:, place], exact.values[:, 20])
    assert table_of(stored, codec, decoded).bits == pytest.approx(
        codec.token_bits(plans.pruned, QP, offsets_of(plan.tiers)), abs=1e-6
    )


def test_what_is_worth_most_stays_and_ties_go_to_the_newest() -> None:
    floor = no_floor(6)
    floor[0] = int(Tier.PRIOR)
    loss = torch.tensor([0.0, 5.0, 1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    assert choose_kept(Constraints(floor, 0.5), loss).tolist() == [True, True, False, False, True, False]
    assert bool(choose_kept(Constraints(floor), loss).all())


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_keep_fractions_that_are_none_are_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="keep fraction"):
        Constraints(no_floor(4), fraction)


def test_anchors_that_are_too_many_are_refused_with_what_they_cost() -> None:
    floor = torch.full((10,), int(Tier.COARSE))
    with pytest.raises(InputError, match=r"anchors alone are 10 tokens.*leaves 3.*Keep at least 1\.000"):
        Constraints(floor, 0.3).kept_tokens()


def test_a_layer_may_not_be_emptied() -> None:
    snapshot = capture(model_of("llama"), session(8))
    tail = dataclasses.replace(
        snapshot,
        layers=tuple(
            dataclasses.replace(
                kv, **{n: getattr(kv, n)[..., 6:, :] for n in ("keys", "values")}, positions=kv.positions[6:]
            )
            for kv in snapshot.layers
        ),
    )
    kept = torch.tensor([True] * 6 + [False] * 2)
    with pytest.raises(InputError, match="layer 0 would hold no token"):
        drop(tail, kept)


def test_layers_with_a_sliding_window_keep_their_own_rule() -> None:
    snapshot = capture(model_of("gemma3"), session(40))
    pruned = drop(snapshot, torch.arange(40) % 2 == 0)
    assert pruned.layers[0].positions.tolist() == list(range(25, 40))
    assert pruned.layers[1].positions.tolist() == list(range(0, 40, 2))


def test_guarantees_are_the_highest_of_a_tokens_anchors() -> None:
    anchors = [Anchor("instruction", 0, 3), Anchor("mark", 2, 4), Anchor("number", 5, 6)]
    assert floor_of(anchors, 7).tolist() == [2, 2, 3, 3, 0, 0, 0]
    raised = named_guarantees(["number=exact", "mark=prior"])
    assert floor_of(anchors, 7, raised).tolist() == [2, 2, 2, 1, 0, 4, 0]
    for wrong in ("number", "verb=fine", "number=sharp"):
        with pytest.raises(InputError, match=r"KIND=TIER|unknown tier"):
            named_guarantees([wrong])
    assert GUARANTEES["number"] == Tier.DROPPED
    assert tier_named("Exact") is Tier.EXACT


@pytest.fixture(scope="module")
def judge(model: Any, snapshot: KVSnapshot) -> Judge:
    return Judge(model, snapshot)


def test_the_exact_cache_loses_nothing_and_a_coarser_one_more(
    judge: Judge, codec: TinyVAECodec, snapshot: KVSnapshot
) -> None:
    fine, coarse = (one_tier_kl(codec, snapshot, qp, judge)[2] for qp in (140, 0))
    assert judge.kl(snapshot) == 0 < fine < coarse


def searching(
    codec: TinyVAECodec, snapshot: KVSnapshot, judge: Judge, score: Tensor, **options: Any
) -> CandidateSearch:
    noise = scored(find_scorer("random"), collect(None, snapshot, []))
    planners = [planner(codec, snapshot, score), Planner(codec, snapshot, "random", noise, Constraints(no_floor(80)))]
    return CandidateSearch(codec, planners, judge, QP, **options)


def test_the_winner_of_a_search_is_its_best_by_measured_damage(
    codec: TinyVAECodec, snapshot: KVSnapshot, judge: Judge, score: Tensor
) -> None:
    most = len(to_bytes(codec.encode(snapshot, QP)))
    history = History()
    search = searching(codec, snapshot, judge, score, history=history)
    winner = search.at_bytes(most)
    assert winner.kl_nats == min(result.kl_nats for result in search.results)
    for result in search.results:
        assert result.planned.file_bytes <= most
        assert result.kl_nats == judge.kl(WithExact(codec).decode(from_bytes(to_bytes(result.planned.encoded))))
    assert set(history.records) == {result.name for result in search.results}
    assert history.records[winner.name] == Record(1, 1, 0.0)
    again = searching(codec, snapshot, judge, score).at_bytes(most)
    assert to_bytes(again.planned.encoded) == to_bytes(winner.planned.encoded)


def test_a_search_to_a_damage_keeps_it_in_fewer_bytes_than_it_began_with(
    codec: TinyVAECodec, snapshot: KVSnapshot, judge: Judge, score: Tensor
) -> None:
    _, size, kl = one_tier_kl(codec, snapshot, QP, judge)
    search = searching(codec, snapshot, judge, score)
    found = search.at_damage(kl, size)
    if found is None:  # on a random model no plan need be better than one tier
        assert min(result.kl_nats for result in search.results) > kl
    else:
        assert found.kl_nats <= kl


def test_budgets_below_the_anchors_are_refused_with_what_these_cost(
    codec: TinyVAECodec, snapshot: KVSnapshot, judge: Judge, score: Tensor
) -> None:
    floor = torch.full((80,), int(Tier.FINE))
    search = CandidateSearch(codec, [planner(codec, snapshot, score, Constraints(floor))], judge, QP)
    least = planner(codec, snapshot, score, Constraints(floor)).smallest(QP + QP_STEPS[0]).file_bytes
    with pytest.raises(InputError, match=f"the 80 guaranteed tokens alone make {least:,}"):
        search.at_bytes(least // 2)


def test_history_steers_and_survives(tmp_path: Path) -> None:
    history = History()
    assert history.order(["a", "b", "c"]) == ["a", "b", "c"]
    for _ in range(3):
        history.note({"a": 0.4, "b": 0.1})
    assert history.order(["a", "b", "c"]) == ["c", "b", "a"]  # c never ran: it is given the benefit of the doubt
    assert history.records["a"] == Record(3, 0, 2.0)
    save_history(tmp_path / "history.json", history)
    assert load_history(tmp_path / "history.json") == history
    assert load_history(tmp_path / "none.json") == load_history(None) == History()
    (tmp_path / "bad.json").write_text('{"candidates": {"a": [1]}}')
    with pytest.raises(InputError, match="no history of searches"):
        load_history(tmp_path / "bad.json")


@pytest.mark.parametrize("asked", [{"quality": "usable"}, {"size_ratio": 20.0}, {"max_kl_nats": 0.05}], ids=str)
def test_a_session_is_planned_without_a_tokenizer(
    asked: dict[str, Any], model: Any, codec: TinyVAECodec, snapshot: KVSnapshot, tmp_path: Path
) -> None:
    found = SessionPlanner(codec, model, None, snapshot, Asked(scorers=("key_norm", "surprise"), **asked)).run()
    decoded = WithExact(codec).decode(from_bytes(to_bytes(found.encoded)))
    measured = Judge(model, snapshot).kl(decoded)
    assert measured == pytest.approx(found.kl_nats, rel=1e-4, abs=1e-9)
    if "size_ratio" in asked:
        assert snapshot.raw_bytes / len(to_bytes(found.encoded)) >= 20.0
        assert measured <= found.one_tier_kl_nats or found.one_tier_bytes > snapshot.raw_bytes / 20.0
    elif not found.notes:
        assert measured <= max(found.one_tier_kl_nats, asked.get("max_kl_nats", 0)) * 1.0001
    assert set(found.table.tiers.tolist()[:4]) <= {int(Tier.COARSE), int(Tier.FINE)}
    assert found.winner in {ONE_TIER, *(result.name for result in found.results)}


def test_a_quick_plan_is_foreseen_to_lose_what_one_tier_does(
    model: Any, codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor
) -> None:
    asked = Asked(scorers=("output_sensitivity",), quality="usable")
    found = SessionPlanner(codec, model, None, snapshot, asked).run_quickly()
    plans = planner(codec, snapshot, score, Constraints(floor_of([Anchor("sink", 0, 4)], 80)))
    qp = codec.qp_of("usable")
    plan = plans.losing(qp + 12, plans.one_tier_damage(qp)).plan
    assert torch.equal(found.table.tiers, plan.tiers)
    assert plan.damage <= plans.one_tier_damage(qp) < plans.plan(qp + 12, plan.weight * 0.9).damage * 1.1
    with pytest.raises(InputError, match="kept by measuring"):
        SessionPlanner(codec, model, None, snapshot, Asked(scorers=("key_norm",), max_kl_nats=0.1)).run_quickly()


def test_half_of_the_tokens_leave_memory(model: Any, codec: TinyVAECodec, snapshot: KVSnapshot) -> None:
    asked = Asked(scorers=("key_norm",), quality="usable", keep_fraction=0.5)
    found = SessionPlanner(codec, model, None, snapshot, asked).run()
    decoded = codec.decode(found.encoded)
    assert [len(layer.positions) for layer in decoded.layers] == [40] * 3
    assert decoded.origin.next_position == 80


def test_tables_are_read_back_only_beside_their_file(
    codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor, tmp_path: Path
) -> None:
    plans = planner(codec, snapshot, score)
    found = plans.encode(plans.plan(QP, 20.0))
    decoded = codec.decode(found.encoded)
    table = dataclasses.replace(
        table_of(found.encoded, codec, decoded), parts={"importance": plans.importance.tolist()}
    )
    save_table(tmp_path / "plan.json", table, {})
    again = load_table(tmp_path / "plan.json", table.tiers, table.bits)
    assert again.parts == table.parts
    head, rows, numbers = again.grid()
    assert head == ["token", "text", "tier", "bits", "importance", "anchors"]
    assert numbers == [0, 3, 4]
    assert len(rows) == 80
    assert {len(row) for row in rows} == {len(head)}
    assert sum(again.counts().values()) == 80
    with pytest.raises(InputError, match="plan of another file"):
        load_table(tmp_path / "plan.json", table.tiers.flip(0), table.bits)
    with pytest.raises(InputError, match="no table of a plan"):
        load_table(tmp_path / "nothing.json", table.tiers, table.bits)


def test_scores_of_another_session_are_refused(codec: TinyVAECodec, snapshot: KVSnapshot, score: Tensor) -> None:
    with pytest.raises(InputError, match=r"\(79,\) do not fit 80 tokens"):
        planner(codec, snapshot, score[:-1])


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_short_sessions_are_planned(tokens: int, model: Any, codec: TinyVAECodec, tmp_path: Path) -> None:
    snapshot = capture(model, random_sessions(1, 8)[0][:tokens])
    found = SessionPlanner(codec, model, None, snapshot, Asked(scorers=("key_norm",), quality="high")).run()
    save(tmp_path / "a.kvz", found.encoded)
    assert codec.decode(load(tmp_path / "a.kvz")).tokens == tokens
    assert load_snapshot.__module__ == "kvcompress.codec.registry"
