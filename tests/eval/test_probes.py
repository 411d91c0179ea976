"""What the suite asks beyond the true continuation: planted numbers, perturbed prompts, hops along a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvcompress.data.harvest import tokenized_sessions
from kvcompress.hf import capture, load_model, restore
from kvcompress.hf.generation import feed, generate_from
from kvcompress.hub.bundled import DEFAULT_MODEL
from kvcompress.metrics.fidelity import TIERS, kl_nats
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.baselines.raw16 import Raw16
from kvcompress_eval.suite.drift import hop_figures
from kvcompress_eval.suite.hops import Hop, Journey, drift, grown, hop_worths
from kvcompress_eval.suite.perturb import PERTURBATIONS
from kvcompress_eval.suite.planted import FACTS, planted, with_numbers
from kvcompress_eval.suite.probes import prepare_probes, probe_row
from kvcompress_eval.suite.prompts import AFTER_TOKENS, PROMPT_TOKENS, perturbed_prompts, prompt_figures
from kvcompress_eval.suite.subject import prepare

TOKENS = 256


@pytest.fixture(scope="module")
def held(sessions_file: Path) -> tuple[Any, Any, Tensor]:
    """Return the bundled model, its tokenizer and a session's tokens."""
    torch.set_num_threads(1)
    model, tokenizer = load_model(DEFAULT_MODEL)
    return model, tokenizer, tokenized_sessions(model, tokenizer, sessions_file)[0][1]


@pytest.fixture(scope="module")
def subject(held: tuple[Any, Any, Tensor], sessions_file: Path) -> Any:
    model, tokenizer, ids = held
    session = tokenized_sessions(model, tokenizer, sessions_file)[0][0]
    return prepare(model, tokenizer, session, ids[: TOKENS + 64], TOKENS)


def test_planted_numbers_stand_in_a_session_of_the_same_length(held: tuple[Any, Any, Tensor]) -> None:
    _, tokenizer, ids = held
    found, asked = with_numbers(tokenizer, ids[:TOKENS], "a session")
    again, _ = with_numbers(tokenizer, ids[:TOKENS], "a session")
    other, _ = with_numbers(tokenizer, ids[:TOKENS], "another")
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert len(found) == TOKENS
    text = tokenizer.decode(found.tolist())
    assert len(asked) == len(FACTS)
    for (statement, _), one in zip(FACTS, asked, strict=True):
        value = tokenizer.decode(list(one.value)).strip()
        assert f"{statement} {value}." in text
        before = tokenizer.decode(found[: TOKENS - one.distance_tokens].tolist())
        assert before.endswith(f"{value}.")
        assert value not in tokenizer.decode(list(one.ids))
    distances = [one.distance_tokens for one in asked]
    assert distances == sorted(distances, reverse=True)


def test_a_session_too_short_for_the_numbers_is_not_planted(held: tuple[Any, Any, Tensor]) -> None:
    model, tokenizer, ids = held
    assert planted(model, tokenizer, ids[:20], "short") is None
    assert planted(model, None, ids[:TOKENS], "no tokenizer") is None


def test_a_number_counts_as_given_where_greedy_generation_gives_it(held: tuple[Any, Any, Tensor]) -> None:
    model, tokenizer, ids = held
    twin = planted(model, tokenizer, ids[:TOKENS], "a session")
    assert twin is not None
    for one, given in zip(twin.asked, twin.recalled, strict=True):
        cache = restore(twin.snapshot, model)
        said = generate_from(model, cache, one.ids, next_position=TOKENS, max_new_tokens=len(one.value))
        assert (said == list(one.value)) == given


def test_a_perturbed_prompt_ends_with_the_true_tokens_and_costs_an_exact_cache_nothing(
    held: tuple[Any, Any, Tensor], subject: Any
) -> None:
    model, tokenizer, _ = held
    prompts = perturbed_prompts(model, tokenizer, subject)
    assert [prompt.rule for prompt in prompts] == list(PERTURBATIONS)
    for prompt in prompts:
        after = subject.continuation[PROMPT_TOKENS : PROMPT_TOKENS + AFTER_TOKENS]
        assert torch.equal(prompt.ids[-len(after) :], after)
        assert not torch.equal(prompt.ids[: -len(after)], subject.continuation[:PROMPT_TOKENS])
        assert prompt.worth_nats > 0
    figures = prompt_figures(model, restore(subject.snapshot, model), prompts, TOKENS)
    assert max(one["kl_nats"] for one in figures.values()) < 1e-9
    assert perturbed_prompts(model, None, subject) == ()


def test_damage_to_a_perturbed_prompt_is_the_kl_of_plain_passes(held: tuple[Any, Any, Tensor], subject: Any) -> None:
    model, tokenizer, _ = held
    prompts = perturbed_prompts(model, tokenizer, subject)[:1]
    spoiled = _spoiled(subject.snapshot)
    figures = prompt_figures(model, restore(spoiled, model), prompts, TOKENS)["typos"]
    runs = [feed(model, restore(one, model), prompts[0].ids, TOKENS) for one in (subject.snapshot, spoiled)]
    assert figures["kl_nats"] == pytest.approx(float(kl_nats(*runs).mean()), rel=1e-3)


def test_a_row_holds_an_answer_to_every_question(held: tuple[Any, Any, Tensor], subject: Any) -> None:
    model, tokenizer, _ = held
    probes = prepare_probes(model, tokenizer, subject, plant=True)
    row = probe_row(model, Raw16(), probes, subject.cache, TOKENS)
    assert row["first_divergence_tokens"] == row["trajectory_tokens"] == len(probes.path.tokens)
    assert set(row["perturbed"]) == set(PERTURBATIONS)
    assert len(row["planted"]) == len(FACTS)
    assert all(ours == exact for _, ours, exact in row["planted"])
    assert (
        probe_row(model, Raw16(), prepare_probes(model, tokenizer, subject, plant=False), subject.cache, TOKENS)[
            "planted"
        ]
        == []
    )


def _spoiled(snapshot: KVSnapshot) -> KVSnapshot:
    layers = tuple(LayerKV(0.9 * layer.keys, layer.values, layer.positions) for layer in snapshot.layers)
    return KVSnapshot(layers, snapshot.token_ids, snapshot.origin)


@pytest.mark.parametrize(
    ("tokens", "hops", "start", "size"),
    [(1536, 10, 256, 128), (1152, 10, 262, 89), (4000, 10, 2720, 128), (24, 3, 12, 4)],
)
def test_a_journey_has_all_its_hops_and_ends_with_the_session(tokens: int, hops: int, start: int, size: int) -> None:
    journey = Journey.over(torch.arange(tokens), hops, 256, 128)
    parts = list(journey.parts())
    assert (journey.start_tokens, journey.hop_tokens, len(parts)) == (start, size, hops)
    assert parts[0][0] == start
    assert torch.equal(torch.cat([part for _, part in parts]), torch.arange(start, tokens))


def test_a_cache_that_went_on_is_the_cache_of_the_longer_session(held: tuple[Any, Any, Tensor]) -> None:
    model, tokenizer, ids = held
    before = capture(model, ids[:64], tokenizer=tokenizer)
    cache = restore(before, model)
    feed(model, cache, ids[64:80], 64)
    longer, exact = grown(before, cache, ids[:80]), capture(model, ids[:80], tokenizer=tokenizer)
    assert longer.origin == exact.origin
    for ours, theirs in zip(longer.layers, exact.layers, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert torch.allclose(ours.keys, theirs.keys, atol=1e-4)
    kept = torch.arange(0, 64, 2)
    layers = tuple(LayerKV(x.keys[:, kept], x.values[:, kept], kept) for x in before.layers)
    pruned = KVSnapshot(layers, before.token_ids, before.origin)
    cache = restore(pruned, model)
    feed(model, cache, ids[64:80], 64)
    positions = grown(pruned, cache, ids[:80]).layers[0].positions
    assert positions.tolist() == [*range(0, 64, 2), *range(64, 80)]


def test_ten_hops_of_a_codec_are_held_against_the_model_that_never_stopped(held: tuple[Any, Any, Tensor]) -> None:
    model, tokenizer, ids = held
    journey, baseline = Journey.over(ids[:256], 10, 128, 16), Raw16()
    hops = drift(model, tokenizer, lambda snapshot: baseline.decode(baseline.encode(snapshot)), journey)
    assert [hop.hop for hop in hops] == list(range(1, 11))
    assert max(hop.kl_nats for hop in hops) < 1e-3
    rough = drift(model, tokenizer, _spoiled, journey)
    assert rough[0].kl_nats > 100 * hops[0].kl_nats
    worths = hop_worths(model, tokenizer, journey, 1)
    assert len(worths) == 10
    assert min(worths) > 0


def test_a_hop_is_judged_by_all_three_bounds_over_sessions() -> None:
    worst = TIERS[-1]
    sessions = [[Hop(1, 0.004, 0.98), Hop(2, 0.010, 0.98)], [Hop(1, 0.002, 0.98), Hop(2, 0.010, 0.85)]]
    first, second = hop_figures(sessions, [[1.0, 1.0], [1.0, 1.0]])
    assert (first["tier"], first["kl_nats"], first["sessions"]) == ("transparent", 0.003, 2)
    assert first["kl_low_nats"] <= 0.003 <= first["kl_high_nats"]
    assert second["tier"] == "usable"  # its agreement, 91.5 %, is below that of high
    assert hop_figures(sessions, [[1.0, 0.01], [1.0, 0.01]])[1]["tier"] is None
    assert second["context_lost"] < worst.max_context_lost
