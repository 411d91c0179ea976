"""Tasks: examples hold their answers, questions are judged as by generating, runs go on, figures are the rows'."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from eval.readme.tasks import readme_table
from kvcompress.codec.directory import load_codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.data.sessions import text_ids
from kvcompress.errors import InputError
from kvcompress.hf import capture, load_model, restore
from kvcompress.hf.generation import generate_from
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL, find_checkpoint
from kvcompress_eval.real_model.words import WIDTH
from kvcompress_eval.tasks import run as run_module
from kvcompress_eval.tasks.asking import Blanks, Ranked, Reply
from kvcompress_eval.tasks.candidates import EXACT, Candidate, evicted, exact, tiers
from kvcompress_eval.tasks.command import tasks_command
from kvcompress_eval.tasks.html import render_html
from kvcompress_eval.tasks.instruction_survival import invent
from kvcompress_eval.tasks.kvtc_at_kl import require_harvest
from kvcompress_eval.tasks.ladder import climb, examples_for, named_sizes
from kvcompress_eval.tasks.measure import ask_all, digest_of, measure
from kvcompress_eval.tasks.page import page
from kvcompress_eval.tasks.protocol import Example, Resumed
from kvcompress_eval.tasks.registry import TASKS, examples, find_tasks
from kvcompress_eval.tasks.ruler import seeded
from kvcompress_eval.tasks.run import TasksRun
from kvcompress_eval.tasks.summary import accuracy, difference
from kvcompress_eval.tasks.variable_tracking import ASSIGNMENT, followed
from tests.eval.real_model_example import build
from tests.eval.tasks_example import SETTINGS, job

Result = dict[str, Any]
OFFLINE = tuple(name for name in TASKS if name not in ("variable_tracking", "frequent_words"))


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load_model(find_checkpoint(DEFAULT_MODEL))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    return build(tmp_path_factory.mktemp("tasks"), sessions_file)


@pytest.fixture(scope="module")
def result(place: Path) -> Result:
    return TasksRun(job(place), SETTINGS, silent).run()


@pytest.fixture(scope="module")
def rows(place: Path, result: Result) -> list[Result]:
    return [json.loads(line) for line in (place / "tasks" / "rows.jsonl").read_text().splitlines()]


def example_of(name: str, tokenizer: Any, size: int | None = None, part: str = "test") -> Example:
    task = find_tasks([name])[0]
    return next(examples(task, size or min(task.sizes), 1, tokenizer, part))


# Examples


@pytest.mark.parametrize("name", OFFLINE)
def test_a_context_opens_as_a_recorded_session_does(name: str, bundled: Any) -> None:
    """A model that hangs its attention on an opening token is not measured without it."""
    tokenizer = bundled[1]
    task = find_tasks((name,))[0]
    for example in examples(task, min(task.sizes), 2, tokenizer, "measure"):
        assert example.context[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("name", OFFLINE)
def test_an_example_is_the_same_every_time_and_another_where_it_calibrates(name: str, bundled: Any) -> None:
    first, again = (example_of(name, bundled[1]) for _ in range(2))
    other = example_of(name, bundled[1], part="calibrate")
    assert digest_of(first) == digest_of(again) != digest_of(other)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_task_asks_for_as_many_answers_as_it_says(name: str, bundled: Any) -> None:
    (task,) = find_tasks([name])
    for size in (min(task.sizes), max(task.sizes)):
        made = example_of(name, bundled[1], size)
        assert sum(len(question.places) for question in made.questions) == task.answers
    assert list(task.sizes) == sorted(task.sizes)
    assert len(task.short) <= 6


@pytest.mark.parametrize("name", ["key_value", "needles", "many_fields", "planted_facts"])
def test_each_answer_stands_in_the_context_where_the_example_says(name: str, bundled: Any) -> None:
    tokenizer = bundled[1]
    made = example_of(name, tokenizer, sorted(find_tasks([name])[0].sizes)[2])
    text = tokenizer.decode(list(made.context))
    for question in made.questions:
        assert isinstance(question, Blanks)
        for (given, answer), where in zip(question.pieces, question.places, strict=True):
            key, value = tokenizer.decode(list(given)), tokenizer.decode(list(answer))
            stated = f"{key.rstrip().splitlines()[-1].split('|>')[-1]}{value}"
            assert text.count(stated) == 1
            assert abs(text.index(stated) / len(text) - where) < 0.12


def test_needles_are_asked_from_the_start_of_the_text_to_its_end(bundled: Any) -> None:
    made = example_of("needles", bundled[1], 1024)
    assert abs(len(made.context) - 1024) < 40
    assert [q.places for q in made.questions] == sorted(q.places for q in made.questions)


def test_what_is_shown_answered_is_never_asked(bundled: Any) -> None:
    for name in ("key_value", "needles", "planted_facts"):
        made = example_of(name, bundled[1])
        end = bundled[1].decode(list(made.context[-len(made.context) // 5 :]))
        for question in made.questions:
            value = bundled[1].decode(list(question.pieces[0][1])).strip()  # type: ignore[attr-defined]
            assert f"is {value}" not in end.partition("\n\n")[2]


def test_a_rule_is_kept_by_the_answers_that_show_it_and_by_no_others(bundled: Any) -> None:
    for seed in range(30):
        rule = invent(random.Random(seed))
        assert rule.is_kept(rule.keep("Paris is the capital."))
        assert not rule.is_kept("Paris is the capital.")


def test_a_conversation_goes_on_as_the_template_lays_it_out(bundled: Any) -> None:
    tokenizer = bundled[1]
    for name in ("planted_facts", "instruction_survival"):
        made = example_of(name, tokenizer)
        for question in made.questions:
            text = tokenizer.decode([*made.context, *question.asked])
            assert text.count("<|bos|>") == 1
            assert text.count("<|end|>") == text.count("<|user|>") + text.count("<|assistant|>") - 1


def test_a_chain_is_followed_to_its_number() -> None:
    text = "VAR A = 12345 noise VAR B = VAR A  VAR X = 777 VAR C = VAR B "
    found = {one[1]: (one[2], one.start() / len(text)) for one in ASSIGNMENT.finditer(text)}
    links = followed(found, "C")
    assert "".join(given + answer for given, answer, _ in links) == "Chain: VAR C = VAR B VAR B = VAR A VAR A = 12345"
    assert [where for *_, where in links] == sorted((where for *_, where in links), reverse=True)


def test_generators_draw_from_the_chance_they_are_given_and_leave_the_global_one() -> None:
    random.seed(5)
    np.random.seed(5)
    untouched = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    drawn = []
    for seed in (1, 1, 2):
        with seeded(random.Random(seed)):
            drawn.append((random.random(), np.random.rand()))
    assert drawn[0] == drawn[1] != drawn[2]
    assert (random.random(), np.random.rand()) == untouched


def test_ruler_s_tasks_hold_their_answers(bundled: Any) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    tokenizer = bundled[1]
    made = example_of("variable_tracking", tokenizer, 6)
    text = tokenizer.decode(list(made.context)).partition("\nChain:")[0]
    assert len(made.questions) == 2
    for question in made.questions:
        assert isinstance(question, Blanks)
        for given, answer in question.pieces:
            assert tokenizer.decode([*given, *answer]).removeprefix("Chain:").strip() in text
    words = example_of("frequent_words", tokenizer, 300)
    counts = Counter(tokenizer.decode(list(words.context)).rpartition("coded words. ")[2].split())
    (ranked,) = words.questions
    assert isinstance(ranked, Ranked)
    right = [tokenizer.decode(list(word)).strip() for word in ranked.right]
    assert right == [word for word, _ in counts.most_common(4)[1:]]
    assert {tokenizer.decode(list(word)).strip() for word in ranked.others} == {*counts} - {*right, "..."}


# Asking


def test_a_blank_is_right_exactly_where_generating_says_the_answer(bundled: Any) -> None:
    model, tokenizer = bundled
    scores = []
    for made in examples(find_tasks(["planted_facts"])[0], 1400, 3, tokenizer, "test"):
        snapshot = capture(model, made.context, tokenizer=tokenizer)
        resumed = Resumed(model, tokenizer, restore(snapshot, model), len(made.context))
        for question in made.questions:
            assert isinstance(question, Blanks)
            ((given, answer),) = question.pieces
            options = {"next_position": len(made.context), "max_new_tokens": len(answer)}
            said = generate_from(model, restore(snapshot, model), given, **options)  # type: ignore[arg-type]
            judged = question.ask(resumed)
            assert judged.scores == (float(tuple(said) == answer),)
            assert tokenizer.decode(said).startswith(judged.said[0])
            scores += judged.scores
    assert 0 < sum(scores) < len(scores)  # both verdicts were tried


def test_several_blanks_are_judged_one_by_one(bundled: Any) -> None:
    model, tokenizer = bundled
    made = example_of("planted_facts", tokenizer, 1400)
    resumed = resumed_of(model, tokenizer, made)
    ((given, answer),) = made.questions[1].pieces  # type: ignore[attr-defined]
    right = made.questions[1].ask(resumed).scores[0]
    wrong = (*answer[:-1], answer[-2])
    twice = Blanks(((given, wrong), (given, answer)), (0.0, 0.0)).ask(resumed)
    assert right == 1
    assert twice.scores[0] == 0
    assert twice.said[0] == tokenizer.decode(list(answer))


def resumed_of(model: Any, tokenizer: Any, made: Example) -> Resumed:
    snapshot = capture(model, made.context, tokenizer=tokenizer)
    return Resumed(model, tokenizer, restore(snapshot, model), len(made.context))


@torch.inference_mode()
def test_candidates_are_ranked_by_their_likelihood_behind_context_and_prompt(bundled: Any) -> None:
    model, tokenizer = bundled
    context, prompt = (text_ids(tokenizer, text) for text in ("red red red blue red green red blue", " red"))
    words = [tuple(text_ids(tokenizer, f" {word}")) for word in ("red", "blue", "green", "yellow", "archive")]
    resumed = resumed_of(model, tokenizer, Example(tuple(context), ()))
    nats = {}
    for word in words:
        ids = torch.tensor([*context, *prompt, *word])
        rows = model(ids[None]).logits[0].float().log_softmax(-1)
        nats[word] = float(sum(rows[at - 1, ids[at]] for at in range(len(ids) - len(word), len(ids))))
    best = sorted(words, key=lambda word: -nats[word])
    for count in (1, 2):
        judged = Ranked(tuple(prompt), tuple(best[:count]), tuple(best[count:]), ()).ask(resumed)
        assert judged.scores == (1.0,) * count
        assert judged.said[0] == tokenizer.decode(list(best[0]))
    assert Ranked(tuple(prompt), (best[2],), (best[0], best[1], best[3]), ()).ask(resumed).scores == (0.0,)


def test_questions_leave_the_session_as_it_was(bundled: Any) -> None:
    model, tokenizer = bundled
    made = example_of("planted_facts", tokenizer)
    resumed = resumed_of(model, tokenizer, made)
    prompt = made.questions[0].asked
    ways = [
        made.questions[0],
        Ranked(prompt, (tuple(text_ids(tokenizer, " 1")),), (tuple(text_ids(tokenizer, " 22")),), ()),
        Reply(prompt, (lambda text: "a" in text,), 6, (0.0,)),
    ]
    first = [way.ask(resumed) for way in ways]
    assert [way.ask(resumed) for way in reversed(ways)] == first[::-1]
    assert resumed.cache.get_seq_length() == len(made.context)


def test_a_reply_is_what_the_model_says_and_is_judged_by_each_rule(bundled: Any) -> None:
    model, tokenizer = bundled
    made = example_of("planted_facts", tokenizer)
    resumed = resumed_of(model, tokenizer, made)
    given = made.questions[0].pieces[0][0]  # type: ignore[attr-defined]
    value = tokenizer.decode(list(made.questions[0].pieces[0][1]))  # type: ignore[attr-defined]
    judged = Reply(given, (lambda text: value in text, lambda text: text == "nothing"), 8, (0.0, 0.0)).ask(resumed)
    assert judged.scores == (1.0, 0.0)
    assert judged.said == (judged.said[0],) * 2


# Candidates


def test_a_cache_through_a_lossless_file_answers_as_the_exact_one(bundled: Any, tmp_path: Path) -> None:
    model, tokenizer = bundled
    made = example_of("planted_facts", tokenizer, 1400)
    snapshot = capture(model, made.context, tokenizer=tokenizer)
    codec = LosslessCodec()
    stored = Candidate("lossless", "ours", "", "", codec.encode, codec.decode)
    row = measure(model, tokenizer, stored, made, snapshot, tmp_path / "context.kvz")
    plain = measure(model, tokenizer, exact(), made, snapshot, tmp_path / "none.kvz")
    assert (row["scores"], row["said"]) == (plain["scores"], plain["said"])
    assert row["file_bytes"] == (tmp_path / "context.kvz").stat().st_size
    assert "file_bytes" not in plain


def test_the_newest_tokens_alone_lose_what_stands_before_them(bundled: Any) -> None:
    model, tokenizer = bundled
    control = evicted(0.4)
    assert control.encode is not None
    assert control.decode is not None
    early, late = [], []
    for made in examples(find_tasks(["planted_facts"])[0], 512, 5, tokenizer, "test"):
        snapshot = capture(model, made.context, tokenizer=tokenizer)
        row = ask_all(model, tokenizer, control.decode(control.encode(snapshot)), made)
        for score, where in zip(row["scores"], row["places"], strict=True):
            (early if where < 0.55 else late).append(score)
    assert np.mean(early) < 0.2
    assert np.mean(late) > 0.6


def test_the_tiers_are_those_that_the_codec_promises() -> None:
    codec = load_codec(DEFAULT_CODEC)
    found = tiers(codec)
    assert [one.name for one in found] == [word for word in ("transparent", "high", "usable") if word in codec.promises]
    assert len({one.fingerprint for one in found}) == 1


# The run


def test_every_candidate_answers_the_same_questions(result: Result, rows: list[Result]) -> None:
    names = [one["name"] for one in result["candidates"]]
    assert names[:2] == [EXACT, "transparent"]
    assert names[-2:] == ["plan keeps 50%", "newest 50%"]
    by_name: dict[str, list[str]] = {}
    for row in rows:
        if row["key"][3:5] == ["planted_facts", "320"]:
            by_name.setdefault(row["key"][1], []).append(row["key"][-1])
    assert set(by_name) == set(names)
    assert all(digests == by_name[EXACT] for digests in by_name.values())
    assert len(by_name[EXACT]) == SETTINGS.least_examples


def test_kvtc_has_the_ratio_at_which_it_loses_what_we_lose(result: Result) -> None:
    beside = [one["quality"] for one in result["candidates"] if one["kind"] == "kvtc"]
    assert beside == [word for word, found in result["kvtc"].items() if found["aimed_ratio"]]
    assert beside
    for word in beside:
        found = result["kvtc"][word]
        curve = sorted((qp, kl) for kl, qp in found["curve"])
        below = [kl for qp, kl in curve if qp <= found["aimed_ratio"]]
        above = [kl for qp, kl in curve if qp >= found["aimed_ratio"]]
        if below and above:
            assert below[-1] <= found["kl_nats"] * 1.001
            assert above[0] >= found["kl_nats"] * 0.999


def test_a_task_that_the_exact_cache_is_not_up_to_is_tried_at_every_size_and_not_measured(result: Result) -> None:
    fields = next(task for task in result["tasks"] if task["name"] == "many_fields")
    assert fields["size"] is None
    assert [one["size"] for one in fields["tried"]] == sorted(find_tasks(["many_fields"])[0].sizes, reverse=True)
    assert fields["candidates"] == []
    assert "no size of many fields at once" in " ".join(page(result).split())


def test_figures_are_those_of_the_rows(result: Result, rows: list[Result]) -> None:
    facts = next(task for task in result["tasks"] if task["name"] == "planted_facts")
    exact_scores = scores_of(rows, EXACT)
    assert facts["enough"] == (np.mean(exact_scores) >= 0.7)
    assert facts["enough"]
    for one in facts["candidates"]:
        mine = scores_of(rows, one["name"])
        assert one["accuracy"]["value"] == pytest.approx(np.mean(mine))
        assert one["difference"]["value"] == pytest.approx(np.mean(mine) - np.mean(exact_scores))
        assert sum(part["answers"] for part in one["by_place"]) == len(mine)
    assert next(one for one in result["means"] if one["name"] == EXACT)["tasks"] == 1


def scores_of(rows: list[Result], name: str) -> list[float]:
    chosen = [row for row in rows if row["key"][1] == name and row["key"][3:5] == ["planted_facts", "320"]]
    return [score for row in chosen for score in row["scores"]]


def test_a_killed_run_measures_what_is_missing_and_nothing_else(
    place: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (place / "tasks" / "rows.jsonl").read_text().splitlines()
    lost = next(number for number, line in enumerate(kept) if '"high"' in line and '"planted_facts"' in line)
    again = place / "again"
    again.mkdir()
    left = [line for number, line in enumerate(kept) if number != lost]
    (again / "rows.jsonl").write_text("\n".join(left) + "\n" + kept[lost][:90])  # cut in the middle
    counted = []

    def measured(*arguments: Any) -> Result:
        counted.append(arguments[2].name)
        return measure(*arguments)

    monkeypatch.setattr(run_module, "measure", measured)
    monkeypatch.setattr("kvcompress_eval.tasks.kvtc_at_kl.fit", lambda *_, **__: pytest.fail("KVTC was fitted again"))
    second = TasksRun(job(place, "again"), SETTINGS, silent).run()
    assert counted == ["high"]
    for ours, theirs in zip(second["tasks"], result["tasks"], strict=True):
        assert [one["accuracy"] for one in ours["candidates"]] == [one["accuracy"] for one in theirs["candidates"]]
    assert second["kvtc"] == result["kvtc"]


def test_a_candidate_that_cannot_store_a_context_is_left_out_with_its_reason(
    place: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "refused").mkdir()
    shutil.copy(place / "tasks" / "rows.jsonl", place / "refused")

    def refuse(snapshot: Any) -> Any:
        raise InputError("too many anchors", "Keep more")

    broken = Candidate("plan keeps 50%", "plan", "transparent", "broken", refuse, LosslessCodec().decode)
    monkeypatch.setattr(run_module, "planned", lambda *_: broken)
    found = TasksRun(job(place, "refused"), SETTINGS, silent).run()
    facts = next(task for task in found["tasks"] if task["name"] == "planted_facts")
    assert facts["failed"] == {"plan keeps 50%": "too many anchors. Keep more."}
    assert "plan keeps 50%" not in [one["name"] for one in facts["candidates"]]
    assert "too many anchors" in page(found)


def test_the_page_fits_80_columns_and_its_pictures_are_whole(place: Path, result: Result) -> None:
    text = (place / "tasks" / "report.md").read_text()
    assert max(map(len, text.splitlines())) <= WIDTH
    stored = json.loads((place / "tasks" / "report.json").read_text())
    assert page(stored) == page(json.loads(json.dumps(result)))
    picture = (place / "tasks" / "accuracy.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "var(" not in picture


def test_a_page_of_all_tasks_and_three_qualities_fits_too(result: Result) -> None:
    (facts,) = (task for task in result["tasks"] if task["candidates"])
    names = [one["name"] for one in result["candidates"] if one["name"] != "plan keeps 50%"]
    names += ["usable", "KVTC, transparent", "KVTC, usable", "plan keeps 50%"]
    full = {"value": 1.0, "low": 1.0, "high": 1.0}
    template = facts["candidates"][-1] | {"accuracy": full}
    told = ("name", "title", "short", "unit", "about")
    tasks = [
        facts
        | {name: getattr(task, name) for name in told}
        | {"candidates": [template | {"name": name} for name in names]}
        for task in find_tasks([])
    ]
    whole = result | {"tasks": tasks, "candidates": [{"name": name} for name in names]}
    assert max(map(len, page(whole).splitlines())) <= WIDTH


def test_the_html_page_needs_nothing_and_says_what_was_not_measured(place: Path, result: Result) -> None:
    html = render_html(result)
    assert "default-src 'none'" in html
    for foreign in ("<script", "http://", "https://"):
        assert foreign not in html.replace("http://www.w3.org", "")
    assert "Many fields at once was not measured" in html
    assert "newest 50%" in html


# Sizes, figures, refusals


def test_the_ladder_takes_the_largest_size_that_the_exact_cache_is_up_to() -> None:
    answers = {10: 0.9, 20: 0.7, 40: 0.69, 80: 0.2}
    found = climb(tuple(answers), answers.__getitem__)
    assert found.size == 20
    assert found.tried == ((80, 0.2), (40, 0.69), (20, 0.7))
    assert climb((10, 20), lambda size: 0.1).size is None


def test_examples_are_enough_for_the_answers_asked_for() -> None:
    (task,) = find_tasks(["key_value"])
    assert examples_for(task, 60, 10) == 12
    assert examples_for(task, 61, 10) == 13
    assert examples_for(task, 5, 10) == 10


def by_example(*pairs: tuple[list[float], list[float]]) -> list[dict[str, Result]]:
    return [{EXACT: {"scores": true}, "ours": {"scores": mine}} for true, mine in pairs]


def test_differences_are_paired_and_contexts_are_resampled() -> None:
    varied = by_example(*[([float(number % 2)] * 4,) * 2 for number in range(12)])
    same = difference(varied, "ours")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    own = accuracy(varied, "ours")
    assert own.low is not None
    assert own.low < 0.3  # answers of one context count as one
    worse = difference(by_example(*[([1.0, 1.0], [1.0, 0.0])] * 6), "ours")
    assert (worse.value, worse.low, worse.high) == (-0.5, -0.5, -0.5)


def test_sizes_are_given_by_task() -> None:
    tasks = find_tasks(["key_value", "needles"])
    assert named_sizes(["key-value=30,needles=512"], tasks) == {"key_value": 30, "needles": 512}
    for wrong in ("key_value", "key_value=0", "key_value=x", "many_fields=24", "=3"):
        with pytest.raises(InputError, match="TASK=N"):
            named_sizes([wrong], tasks)


def test_bad_input_is_refused_at_once_with_a_remedy(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Known are key_value"):
        find_tasks(["key_values"])
    with pytest.raises(InputError, match="unknown scorer"):
        tasks_command(DEFAULT_MODEL, str(place / "codec"), tmp_path / "out", ["needles"], scorer="best", threads=1)
    with pytest.raises(InputError, match="At hand: 0, 1"):
        tasks_command(DEFAULT_MODEL, str(place / "codec"), tmp_path / "out", ["needles"], recompute_layers=5, threads=1)
    with pytest.raises(InputError, match="harvest"):
        require_harvest(tmp_path, 4)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_what_installs_it(bundled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vt_utils", "fwe_utils"):
        monkeypatch.setitem(sys.modules, f"lm_eval.tasks.ruler.{module}", None)
    for name in ("variable_tracking", "frequent_words"):
        with pytest.raises(InputError, match=r"\[eval\]"):
            example_of(name, bundled[1])


def test_a_model_without_a_chat_template_is_told_which_tasks_it_can_take(bundled: Any) -> None:
    tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))[1]
    assert tokenizer is not None
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        example_of("planted_facts", tokenizer)
    assert example_of("needles", tokenizer).questions


def test_the_readmes_table_has_a_row_a_task_and_says_what_was_measured(result: Result) -> None:
    shown = [task for task in result["tasks"] if task["candidates"] and task["enough"]]
    lines = readme_table(result).splitlines()
    assert len(lines) == 2 + len(shown) + 2
    for task, line in zip(shown, lines[2:], strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0].startswith(task["title"].lower())
        exact = next(one for one in task["candidates"] if one["name"] == EXACT)
        assert float(cells[1].rstrip(" %")) == pytest.approx(100 * exact["accuracy"]["value"], abs=0.06)
    assert result["model"]["name"] in lines[-1]
