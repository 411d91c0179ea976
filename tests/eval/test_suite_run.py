"""The suite as a whole, small: what it reports is what a straightforward computation on its files gives."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kvcompress_eval.suite.run as suite_run
from eval.__main__ import app as workshop
from eval.readme.write import write_tables
from kvcompress.cli.app import app
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import CheckpointError, InputError, KVCompressError, MismatchError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.format.container import load, save
from kvcompress.hf import capture, load_model
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL, find_checkpoint
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.baselines.int8 import family as int8_family
from kvcompress_eval.baselines.protocol import Calibration
from kvcompress_eval.baselines.registry import FAMILIES, OWN, Own, build, build_all, resolve
from kvcompress_eval.suite.curves import thin
from kvcompress_eval.suite.job import Job
from kvcompress_eval.suite.publish import read_result
from kvcompress_eval.suite.run import run_suite
from kvcompress_eval.suite.settings import SuiteSettings
from kvcompress_eval.suite.spoken import spoken_command
from tests.codec.conftest import codec as codec
from tests.codec.conftest import model as model

SMALL = SuiteSettings(tokens=96, continuation_tokens=64, count=2, thorough=1, calibration=4, most_points=2, quick=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("suite")
    found = run(["tinyvae", "int8", "raw16"], sessions_file, out, SMALL, command="the command")
    return found | {"out": out}


def run(codecs: list[str], sessions: Path, out: Path, settings: SuiteSettings, **more: Any) -> dict[str, Any]:
    return run_suite(Job(DEFAULT_MODEL, tuple(codecs), sessions, out, **more), lambda parameters: settings)


def _entry(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(codec for codec in result["codecs"] if codec["name"] == name)


def test_sizes_are_those_of_the_file_system(result: dict[str, Any], tmp_path: Path, sessions_file: Path) -> None:
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    baseline = next(r for r in int8_family(None) if r.name == "int8")  # type: ignore[arg-type]
    sizes = []
    for number, (_, ids) in enumerate(tokenized_sessions(model, tokenizer, sessions_file)[:2]):
        path = tmp_path / f"{number}.kvz"
        save(path, baseline.encode(capture(model, ids[:96], tokenizer=tokenizer)))
        sizes.append(path.stat().st_size)
    size = _entry(result, "int8")["size"]
    assert size["file_bytes"] == sum(sizes) / 2
    assert size["size_ratio"]["mean"] == pytest.approx(2 * 2 * 96 * result["model"]["values_per_token"] / sum(sizes))
    assert sum(size["sections"].values()) == pytest.approx(size["file_bytes"])


def test_kl_agrees_with_plain_forward_passes(result: dict[str, Any], sessions_file: Path) -> None:
    """Decoded keys and values are pasted into the model's own cache by hand; no code of the suite is used."""
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    baseline = next(r for r in int8_family(None) if r.name == "int8")  # type: ignore[arg-type]
    means, worths = [], []
    for _, ids in tokenized_sessions(model, tokenizer, sessions_file)[:2]:
        stored, rest = ids[:96], ids[96:160]
        decoded = baseline.decode(baseline.encode(capture(model, stored, tokenizer=tokenizer)))
        with torch.no_grad():
            exact = model(ids[:160][None]).logits[0, 96:].double().log_softmax(-1)
            cache = model(stored[None], use_cache=True).past_key_values
            for layer, kept in zip(cache.layers, decoded.layers, strict=True):
                layer.keys, layer.values = kept.keys[None], kept.values[None]
            logits = model(rest[None], past_key_values=cache).logits[0].double().log_softmax(-1)
            short = [
                model(ids[t - 31 : t + 1][None], position_ids=torch.arange(t - 31, t + 1)[None]).logits[0, -1]
                for t in range(96, 160)
            ]
        cut = torch.stack(short).double().log_softmax(-1)
        means.append(float((exact.exp() * (exact - logits)).sum(-1).mean()))
        worths.append(float((exact.exp() * (exact - cut)).sum(-1).mean()))
    fidelity = _entry(result, "int8")["fidelity"]
    assert fidelity["kl_nats"]["mean"] == pytest.approx(sum(means) / 2, rel=0.02, abs=1e-9)
    assert fidelity["context_lost"]["mean"] == pytest.approx(sum(means) / sum(worths), rel=0.02, abs=1e-9)
    assert result["sessions"]["context_worth_nats"]["mean"] == pytest.approx(sum(worths) / 2, rel=1e-3)


def test_report_is_written_and_read_again(result: dict[str, Any]) -> None:
    again = read_result(result["out"])
    assert [codec["name"] for codec in again["codecs"]] == [codec["name"] for codec in result["codecs"]]
    assert {path.name for path in result["out"].iterdir()} == {"report.json", "report.md", "report.html", "rows.jsonl"}
    lines = [json.loads(line) for line in (result["out"] / "rows.jsonl").read_text().splitlines()]
    rows = [row for row in lines if row["key"][0] == "suite"]
    assert len(rows) == 2 * len(result["codecs"])
    kl = [sum(r["per_token_kl_nats"]) / 64 for r in rows if r["codec"] == "int8"]
    assert _entry(result, "int8")["fidelity"]["kl_nats"]["mean"] == pytest.approx(sum(kl) / 2)
    assert (result["out"] / "report.md").read_text().count("the command") >= 1


def test_noise_floor_lies_far_below_the_transparent_tier(result: dict[str, Any]) -> None:
    assert result["noise_floor_nats"] < 0.1 * 0.005
    assert {control["name"] for control in result["controls"]} >= {"prefilled again", "in chunks of 128 tokens"}


def test_a_run_that_goes_on_measures_and_fits_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sessions_file: Path
) -> None:
    codecs, settings = ["raw16", "cachegen"], replace(SMALL, hops=2, hop_sessions=1)
    before = run(codecs, sessions_file, tmp_path, settings)
    lines = (tmp_path / "rows.jsonl").read_text()

    def never(*given: Any, **more: Any) -> Any:
        raise AssertionError("is measured or fitted again")

    monkeypatch.setattr(suite_run, "measure_point", never)
    monkeypatch.setattr(suite_run, "prepare", never)
    monkeypatch.setattr("kvcompress_eval.baselines.cachegen.family", never)
    after = run(codecs, sessions_file, tmp_path, settings, go_on=True)
    assert (tmp_path / "rows.jsonl").read_text() == lines
    same = ("sessions", "codecs", "controls", "hops", "economics", "equal_kl")
    named = {
        name: {codec["name"]: codec for codec in result["codecs"]} for name, result in (("a", before), ("b", after))
    }
    assert named["a"] == named["b"]
    for part in set(same) - {"codecs"}:
        assert after.get(part) == before.get(part), part


def test_hopeless_settings_of_baselines_are_given_up_after_the_first_session(
    tmp_path: Path, sessions_file: Path
) -> None:
    found = run(
        ["tinyvae", "int8", "turboquant"], sessions_file, tmp_path, replace(SMALL, most_first_nats=1e-9, hops=0)
    )
    reasons = {codec["name"]: codec["failed"] for codec in found["codecs"]}
    assert all(reasons[name] is None for name in reasons if name.startswith("tinyvae"))
    assert all("on the first session" in reasons[name] for name in ("int8", "turboquant-1bit"))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sum(row.get("codec") == "int8" for row in rows) == 1


def test_only_the_first_sessions_go_on_for_long_and_exact_baselines_are_measured_on_few(
    tmp_path: Path, sessions_file: Path
) -> None:
    settings = replace(SMALL, continuation_tokens=160, long_sessions=1, exact_sessions=1, hops=0)
    found = run(["raw16", "turboquant"], sessions_file, tmp_path, settings)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row for row in lines if row["key"][0] == "suite"]
    lengths = [len(row["whole"]["per_token_kl_nats"]) if "whole" in row else 0 for row in rows]
    assert lengths == [160] * 3 + [0] * 2  # raw16 and two points of turboquant, then these two again
    assert {len(row["per_token_kl_nats"]) for row in rows} == {128}
    assert (_entry(found, "raw16")["sessions"], _entry(found, "turboquant-4bit")["sessions"]) == (1, 2)
    assert _entry(found, "turboquant-4bit")["whole"]["sessions"] == 1
    assert "| sessions |" in (tmp_path / "report.md").read_text().split("## All codecs")[1]


class _Spoiled:
    """int8, until its second session: then a NaN."""

    name, family, kind, codec_bytes, fingerprint = "spoiled", "spoiled", "int8", 0, ""

    def __init__(self) -> None:
        self.baseline, self.calls = next(r for r in int8_family(None) if r.name == "int8"), 0  # type: ignore[arg-type]

    def encode(self, snapshot: KVSnapshot) -> Any:
        self.calls += snapshot.tokens == 96
        return self.baseline.encode(snapshot)

    def decode(self, encoded: Any) -> KVSnapshot:
        snapshot = self.baseline.decode(encoded)
        if self.calls < 4:  # the slow measures of the first session encode once more
            return snapshot
        first = snapshot.layers[0]
        spoiled = LayerKV(torch.full_like(first.keys, math.nan), first.values, first.positions)
        return KVSnapshot((spoiled, *snapshot.layers[1:]), snapshot.token_ids, snapshot.origin)


def test_a_failed_baseline_says_why_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sessions_file: Path
) -> None:
    def build(names: Any, calibration: Any, *others: Any) -> Iterator[Any]:
        yield "spoiled", [_Spoiled()], None
        yield from build_all(["raw16"], calibration)
        yield "broken", [], "ValueError: cannot be fitted"

    monkeypatch.setattr(suite_run, "points_of", build)
    found = run(["int8"], sessions_file, tmp_path, replace(SMALL, count=3))
    reasons = {codec["name"]: codec["failed"] for codec in found["codecs"]}
    assert "NaN" in reasons["spoiled"]
    assert reasons["broken"] == "ValueError: cannot be fitted"
    assert reasons["raw16"] is None
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row["codec"] for row in lines if row["key"][0] == "suite"]
    assert rows.count("raw16") == 3
    assert 1 <= rows.count("spoiled") < 3  # what was measured before is kept
    assert "NaN" in (tmp_path / "report.html").read_text()


def test_unknown_codec_short_sessions_and_wrong_files_are_one_line(tmp_path: Path, sessions_file: Path) -> None:
    with pytest.raises(InputError, match="unknown codec 'nonsense'"):
        resolve(["nonsense"])
    with pytest.raises(InputError, match="no session has the 100064 tokens"):
        run(["raw16"], sessions_file, tmp_path / "a", replace(SMALL, tokens=100_000))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(sessions_file.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match="left to fit baselines to"):
        run(["kvtc"], few, tmp_path / "b", SMALL)
    assert not (tmp_path / "a").exists()
    with pytest.raises(KVCompressError, match="cannot be read"):
        read_result(tmp_path / "none")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(KVCompressError, match="schema"):
        read_result(tmp_path)


def test_all_means_the_baselines_where_a_codec_directory_is_named(tmp_path: Path) -> None:
    assert resolve(["all"]) == [OWN, *FAMILIES]
    assert resolve([str(tmp_path), "all"]) == [str(tmp_path), *FAMILIES]
    assert resolve(["int8", "int8"]) == ["int8"]


def test_thinning_keeps_ends_and_quality_words() -> None:
    baselines = [_Spoiled() for _ in range(9)]
    chosen = thin(list(baselines), 3)
    assert chosen == [baselines[0], baselines[4], baselines[8]]
    assert thin(list(baselines), 20) == baselines


def test_readme_keeps_its_text_and_takes_the_table(result: dict[str, Any], tmp_path: Path) -> None:
    page, reports = tmp_path / "README.md", tmp_path / "reports"
    shutil.copytree(result["out"], reports / "reference-lm")
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    write_tables(["results"], page, reports)
    text = page.read_text()
    assert text.startswith("before\n<!-- results -->\n")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text
    assert "tinyvae" in text
    page.write_text("no marks")
    with pytest.raises(InputError, match="no place for results"):
        write_tables(["results"], page, reports)
    with pytest.raises(InputError, match="no table is called 'figures'"):
        write_tables(["figures"], page, reports)
    with pytest.raises(InputError, match="no report can be read"):
        write_tables(["tasks"], page, reports)


def test_compare_prints_the_differences_of_two_reports(result: dict[str, Any]) -> None:
    outcome = CliRunner().invoke(app, ["eval", "compare", str(result["out"]), str(result["out"])])
    assert outcome.exit_code == 0
    assert "int8" in outcome.output


def test_file_of_every_codec_is_read_back(result: dict[str, Any], tmp_path: Path, sessions_file: Path) -> None:
    """Round trip through the file system, not through memory: what is measured is what was read."""
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    _, ids = tokenized_sessions(model, tokenizer, sessions_file)[0]
    snapshot = capture(model, ids[:96], tokenizer=tokenizer)
    baseline = next(r for r in int8_family(None) if r.name == "int8")  # type: ignore[arg-type]
    save(tmp_path / "a.kvz", baseline.encode(snapshot))
    decoded = baseline.decode(load(tmp_path / "a.kvz"))
    assert not torch.equal(decoded.layers[0].keys, snapshot.layers[0].keys)
    assert torch.equal(decoded.token_ids, snapshot.token_ids)


def test_a_named_codec_that_cannot_be_measured_is_refused_before_the_run(
    tmp_path: Path, sessions_file: Path, codec: TinyVAECodec
) -> None:
    with pytest.raises(CheckpointError, match="no codec here"):
        run([str(tmp_path), "int8"], sessions_file, tmp_path / "out", SMALL)
    save_codec(codec, tmp_path / "of-another-model")
    with pytest.raises(MismatchError, match="model"):
        run([str(tmp_path / "of-another-model")], sessions_file, tmp_path / "out", SMALL)
    with pytest.raises(MismatchError, match="model"):
        run([OWN], sessions_file, tmp_path / "out", SMALL, own=Own(str(tmp_path / "of-another-model")))
    assert not (tmp_path / "out").exists()


def test_the_codec_of_a_model_is_found_where_none_is_named(tmp_path: Path, sessions_file: Path) -> None:
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    own = Own(str(find_checkpoint(DEFAULT_CODEC)))
    named = build(OWN, Calibration(model, tokenizer, []), own)
    assert [point.fingerprint for point in build(OWN, Calibration(model, tokenizer, []))] == [
        point.fingerprint for point in named
    ]


def test_a_short_name_stands_for_all_that_belongs_to_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("eval.run.run_for_users", lambda **asked: given.update(asked))
    done = CliRunner().invoke(workshop, ["run", "--model", "smollm2", "--count", "2"], catch_exceptions=False)
    assert done.exit_code == 0
    assert given["model"] == "models/smollm2-135m-instruct"
    assert given["codec_dir"] == "smollm2-135m-instruct-tinyvae"
    assert given["sessions"] == Path("models/sessions/test.jsonl")
    assert given["count"] == 2
    CliRunner().invoke(workshop, ["run", "--quick"], catch_exceptions=False)
    assert (given["model"], given["codec_dir"], given["quick"]) == (DEFAULT_MODEL, None, True)


def test_reports_name_the_command_as_it_was_given() -> None:
    assert spoken_command(["/bin/kvcompress", "eval", "run", "-o", "/reports/out"]) == "kvcompress eval run -o out"
    assert spoken_command(["/checkout/eval/__main__.py", "prune", "--fit"]) == "python -m eval prune --fit"
