"""The leaderboard: runs that go on where they stopped, figures that follow from rows, fits that find what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.leaderboard.board import read_rows
from eval.leaderboard.candidates import ONE_TIER, SEARCH, names
from eval.leaderboard.fit import Example, fit_profile, fit_salience, fit_scorers, write_fitted
from eval.leaderboard.report import larger_at_equal_kl, markdown, smaller_at_equal_kl, summarise
from eval.leaderboard.run import place_of
from kvcompress.errors import CheckpointError, FormatError
from kvcompress.hub.bundled import DEFAULT_CODEC
from kvcompress.hub.hub_id import SCORERS_FILE
from kvcompress.prune.scorers.features import FEATURES
from kvcompress.prune.scorers.learned import Learned
from kvcompress.prune.scorers.profiles import FITTED, KNOTS, Profile, load_fitted, profile_of
from kvcompress.prune.scorers.registry import SCORERS
from kvcompress.prune.scorers.salience import PARTS

TOKENS = 400


def row(session: str, candidate: str, kl: float, size: int, board: str = "bytes:high") -> dict[str, Any]:
    counts = dict.fromkeys(("asked", "recalled", "recalled_exact_cache", "sensitive"), 2)
    rules = dict.fromkeys(("rules", "rules_lost", "rules_kept", "rules_kept_exact_cache"), 1)
    figures = {"kl_nats": kl, "worth_nats": 1.0, "sensitive_kl_nats": kl, "top1_agreement": 0.9, "seconds": 0.1}
    sizes = {"file_bytes": size, "raw_bytes": 100_000, "kept_tokens": 10}
    place = {"session": session, "category": "facts", "board": board, "candidate": candidate}
    return place | counts | rules | figures | sizes


def test_the_board_ranks_by_kl_and_says_what_was_not_met() -> None:
    rows = [
        row(s, name, kl, 1000) for s in "ab" for name, kl in ((ONE_TIER, 0.04), ("random", 0.09), ("learned", 0.01))
    ]
    rows.append({"session": "a", "board": "bytes:high", "candidate": SEARCH, "failed": "too small"})
    rows.append(row("b", SEARCH, 0.02, 900))
    entries = summarise(rows)["bytes:high"]
    assert [entry["candidate"] for entry in entries] == ["learned", SEARCH, ONE_TIER, "random"]
    assert [entry["not_met"] for entry in entries] == [0, 1, 0, 0]
    assert [entry["better_than_one_tier"] for entry in entries] == [2, 1, 0, 0]
    page = markdown(
        {
            "command": "c",
            "sessions": 2,
            "tokens": 9,
            "continuation": 9,
            "boards": {"bytes:high": entries},
            "smaller_at_equal_kl": {"bytes:high": 1.5},
            "larger_at_equal_kl": {},
        }
    )
    assert "| *random* | 0.0900 ± 0.0000 |" in page
    assert "search (not met in 1)" in page
    assert "1.50 times smaller" in page
    assert "times larger" not in page


def test_the_size_at_equal_kl_is_read_between_the_sizes_that_ran() -> None:
    rows = [row("a", ONE_TIER, 0.02, 4000), row("a", SEARCH, 0.01, 4000)]
    rows += [row("a", f"{SEARCH} 0.5", 0.02, 2000), row("a", f"{SEARCH} 0.3", 0.08, 1000)]
    assert smaller_at_equal_kl(summarise(rows)["bytes:high"]) == pytest.approx(2.0)
    rows[0]["kl_nats"] = 0.04  # half-way, on logarithms, between 0.02 at 2,000 and 0.08 at 1,000
    assert smaller_at_equal_kl(summarise(rows)["bytes:high"]) == pytest.approx(4000 / 2**0.5 / 1000)
    rows[0]["kl_nats"] = 0.5
    assert smaller_at_equal_kl(summarise(rows)["bytes:high"]) is None


def test_the_size_of_one_tier_at_the_races_kl_is_read_between_its_own_sizes() -> None:
    rows = [row("a", ONE_TIER, 0.04, 1000), row("a", SEARCH, 0.01, 1000)]
    rows += [row("a", f"{ONE_TIER} +8", 0.02, 2000), row("a", f"{ONE_TIER} +16", 0.005, 4000)]
    assert larger_at_equal_kl(summarise(rows)["bytes:high"]) == pytest.approx(2000 * 2**0.5 / 1000)
    rows[1]["kl_nats"] = 0.001
    assert larger_at_equal_kl(summarise(rows)["bytes:high"]) is None


def test_a_run_that_was_cut_off_goes_on_behind_its_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    path.write_text('{"a"\n{"a": 2}\n')
    with pytest.raises(FormatError, match="line 1"):
        read_rows(path)


def test_every_scorer_and_both_controls_are_on_every_board() -> None:
    assert [name for board, name in names(["high"], []) if board == "bytes:high"] == [ONE_TIER, SEARCH]
    pairs = names(["usable"], ["usable"])
    assert len(set(pairs)) == len(pairs)
    for board in ("bytes:usable", "kept:0.5", "kept:0.25"):
        assert set(SCORERS) <= {name for where, name in pairs if where == board}
    assert ("bytes:usable", ONE_TIER) in pairs
    assert ("half:usable", SEARCH) in pairs


def example(seed: int, importance_of: str = "sensitivity") -> Example:
    """A session whose damage follows from one feature, up to noise, and that a codec half expects."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(TOKENS, len(FEATURES), generator=generator)
    told = rows[:, list(FEATURES).index(importance_of)]
    own = torch.randn(TOKENS, generator=generator)
    damage = torch.exp2(6 * told + 0.5 * own) * torch.rand(TOKENS, generator=generator).add(0.5)
    parts = {name: torch.rand(TOKENS, generator=generator) for name in PARTS} | {"reward": told}
    scores = {name: torch.rand(TOKENS, generator=generator) for name in SCORERS} | {"output_sensitivity": told}
    return Example(damage / damage.mean(), own, scores, parts, rows)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [example(seed) for seed in range(4)]


def test_fits_find_what_the_damage_follows_from(examples: list[Example], tmp_path: Path) -> None:
    weights = fit_salience(examples)
    assert weights["reward"] > 0.9
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)
    told = fit_profile(examples, [e.scores["output_sensitivity"] for e in examples])
    blind = fit_profile(examples, [e.scores["random"] for e in examples])
    assert told["share"] == pytest.approx(0.5, abs=0.1)
    assert told["curve"][-1] - told["curve"][0] == pytest.approx(6, abs=1.0)
    assert max(blind["curve"]) - min(blind["curve"]) < 1.5
    fitted = fit_scorers(examples, lambda stage, done, total: None)
    unseen = example(9)
    predicted = Learned(fitted["learned"]).of_features(unseen.features)
    rest = torch.log(unseen.damage) - 0.5 * unseen.own * torch.log(torch.tensor(2.0))
    assert float(torch.corrcoef(torch.stack([predicted, rest]))[0, 1]) > 0.9
    path = tmp_path / "fitted.json"
    write_fitted(path, fitted, {"command": "a test"})
    assert profile_of("output_sensitivity", path).curve == tuple(fitted["profiles"]["output_sensitivity"]["curve"])


def test_importance_has_mean_one_and_follows_rank_and_codec() -> None:
    profile = Profile(1.0, tuple(4 * knot for knot in KNOTS))
    importance = profile.importance(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0]))
    assert float(importance.mean()) == pytest.approx(1)
    assert (importance / importance[1]).tolist() == pytest.approx([16, 1, 8])


def test_the_bundled_fit_covers_every_scorer_and_says_how_it_was_made() -> None:
    fitted = load_fitted(FITTED)
    assert set(fitted["profiles"]) == set(SCORERS)
    assert fitted["made"]["command"].startswith("python -m eval prune --fit")
    assert set(fitted["salience"]) == set(PARTS)


@pytest.mark.parametrize("damaged", ["[]", "{", '{"profiles": {"learned": {"share": 1, "curve": [0]}}}'])
def test_damaged_fits_are_refused(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    path.write_text(damaged)
    with pytest.raises(CheckpointError, match="--fit"):
        profile_of("learned", path)
    assert json.loads(FITTED.read_text())


def test_what_is_learnt_goes_where_plans_look_for_it(tmp_path: Path) -> None:
    assert place_of(DEFAULT_CODEC) == FITTED
    assert place_of(str(tmp_path)) == tmp_path / SCORERS_FILE
