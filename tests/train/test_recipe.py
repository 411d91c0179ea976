"""The recipe of the reference model: what it trains on is a function of corpus and seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers", reason="the train extra is not installed")

from kvcompress.metrics.instructions import Rule
from train.lm.compose import CATEGORIES, composed_session
from train.lm.corpus import Corpus, is_held_out, load_corpus
from train.lm.curriculum import Batches, Phase, Recipe
from train.lm.documents import disguise, session
from train.lm.facts import ask, invent_fact, planted_facts, state
from train.lm.instructions import checks, follow_throughout, instruct, invent_instructions
from train.lm.muon import Muon, orthogonalise
from train.lm.tokenizer import render, train_tokenizer
from train.sessions import _turns

DIALOGUES = [
    [
        {"role": "user", "content": f"I want to fly to Lisbon on day {n} with 250 dollars."},
        {"role": "assistant", "content": f"The flight to Lisbon costs 250 dollars on day {n}."},
    ]
    for n in range(20)
]
PROBLEM = [{"role": "user", "content": "What is 2 and 3?"}, {"role": "assistant", "content": "The answer is 5"}]
CORPUS = Corpus(DIALOGUES, [PROBLEM], ["It was a long and quiet evening by the sea. " * 400])


@pytest.fixture(scope="module")
def tokenizer() -> object:
    texts = [m["content"] for d in DIALOGUES for m in d] + CORPUS.texts
    return train_tokenizer(texts, 400, 256)


def test_held_out_documents_are_disjoint_and_stable(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "messages": DIALOGUES[0]}) + "\n" for n in range(500)))
    kept, held = load_corpus([path]), load_corpus([path], held_out=True)
    assert len(kept.dialogues) + len(held.dialogues) == 500
    assert 1 <= len(held.dialogues) <= 40
    assert is_held_out("d1") == is_held_out("d1")


def test_disguise_is_consistent_within_a_dialogue() -> None:
    disguised = disguise(DIALOGUES[3], random.Random(0))
    text = " ".join(m["content"] for m in disguised)
    assert "Lisbon" not in text
    assert "250" not in text
    words = [m["content"].split() for m in disguised]
    assert words[0][words[0].index("to", 3) + 1] == words[1][words[1].index("to") + 1]


def test_session_answers_follow_their_facts() -> None:
    messages = session(CORPUS, random.Random(4), 3000)
    roles = [m["role"] for m in messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    answers = [m["content"] for m in messages if m["content"].startswith("Your ")]
    assert answers
    for answer in answers:
        subject, value = answer.removeprefix("Your ").rstrip(".").split(" is ", 1)
        before = " ".join(m["content"] for m in messages[: [m["content"] for m in messages].index(answer)])
        assert f"my {subject} is {value}." in before.replace("My", "my")


def test_facts_have_distinct_subjects_and_say_their_value() -> None:
    rng, taken = random.Random(0), set[str]()
    facts = [invent_fact(rng, taken) for _ in range(30)]
    assert len({fact.subject for fact in facts}) == 30
    assert facts[0].value in state(facts[:1], rng)[0]["content"]
    assert facts[0].value not in ask(facts[0], rng)[0]["content"]


def test_batch_of_a_step_is_the_same_after_a_resume(tokenizer: object) -> None:
    recipe = Recipe((Phase(3, 32, 2), Phase(3, 64, 1)))
    whole, resumed = Batches(CORPUS, tokenizer, recipe, 0), Batches(CORPUS, tokenizer, recipe, 4)
    assert len(resumed) == 2
    assert torch.equal(whole[4], resumed[0])
    assert whole[0].shape == (2, 33)
    assert whole[5].shape == (1, 65)


def test_learning_rate_warms_up_and_decays() -> None:
    recipe = Recipe((Phase(1000, 32, 2),))
    scales = [recipe.learning_rate_scale(step) for step in range(1000)]
    assert scales[0] < 0.02
    assert max(scales) == 1.0
    assert scales[-1] == pytest.approx(0.02, abs=0.01)


def test_template_and_rendering_agree_and_digits_stand_alone(tokenizer: object) -> None:
    assert tokenizer.apply_chat_template(DIALOGUES[0], tokenize=False) == render(DIALOGUES[0])
    assert tokenizer.tokenize("4821") == list("4821")
    text = "Any bytes: é ß 漢 \n\t ok"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_orthogonalised_update_has_singular_values_near_one() -> None:
    for shape in ((16, 40), (40, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrix))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


def test_muon_minimises() -> None:
    torch.manual_seed(0)
    weight, target = torch.nn.Parameter(torch.randn(8, 8)), torch.randn(8, 8)
    optimizer = Muon([weight], lr=0.05, weight_decay=0.0)
    first = last = 0.0
    for step in range(200):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (float(loss), float(loss)) if step == 0 else (first, float(loss))
    assert last < 0.1 * first


def test_sampled_text_is_cut_into_complete_alternating_turns() -> None:
    text = "<|assistant|>Hi.<|end|><|user|>Bye.<|end|><|assistant|>See you.<|end|><|user|>An open tur"
    assert [t["content"] for t in _turns(text, "assistant")] == ["Hi.", "Bye.", "See you."]
    assert _turns("<|user|>Only me.<|end|>", "user") == []
    assert _turns("garbage", "assistant") == []


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="the train extra is not installed")
    from transformers import AutoModelForCausalLM

    from train.lm.run import train_lm

    path = tmp_path / "c.jsonl"
    rows = [{"id": f"d{n}", "messages": DIALOGUES[n % 20]} for n in range(400)]
    rows += [{"id": f"p{n}", "messages": PROBLEM} for n in range(20)]
    rows += [{"title": f"t{n}", "text": CORPUS.texts[0] * 12} for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(
        (Phase(12, 32, 2),), vocab_size=400, hidden_size=64, intermediate_size=64, layers=2, heads=2, kv_heads=1
    )
    options = {"threads": 1, "compile_model": False, "report_every": 4}
    train_lm([path], tmp_path / "whole", recipe, **options)
    for _ in range(3):
        train_lm([path], tmp_path / "cut", recipe, **options, stop_after=4)
    whole, cut = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    for ours, theirs in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_instructed_answers_keep_every_rule() -> None:
    rng = random.Random(3)
    for _ in range(50):
        given = invent_instructions(rng)
        messages = [*instruct(given, rng), *follow_throughout(given, PROBLEM)]
        for check in checks(given):
            for message in messages[1::2]:
                assert Rule(check["position"], check["text"]).is_kept(message["content"]), (check, message)
            assert not Rule(check["position"], check["text"]).is_kept(PROBLEM[1]["content"])


def test_planted_facts_point_at_statement_and_question() -> None:
    messages = session(CORPUS, random.Random(9), 4000)
    found = planted_facts(messages)
    assert len(found) >= 5
    for fact in found:
        assert fact["stated_message"] < fact["question_message"]
        assert fact["value"] in messages[fact["stated_message"]]["content"]
        assert f"is {fact['value']}." in messages[fact["question_message"] + 1]["content"]


@pytest.mark.parametrize("category", sorted(set(CATEGORIES)))
def test_composed_sessions_alternate_roles_in_every_category(category: str) -> None:
    row = composed_session(CORPUS, random.Random(1), 3000, "c0", category)
    roles = [m["role"] for m in row["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert row["category"] == category
    assert bool(row.get("facts")) == (category in ("facts", "instructions"))
    assert bool(row.get("instructions")) == (category == "instructions")
