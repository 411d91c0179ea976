"""Eviction drops what its scorer ranks lowest and nothing else; tokens alone bring the whole cache back."""

from __future__ import annotations

import dataclasses
import math
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from kvcompress.codec.exact_tokens import WithExact
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.container import from_bytes, to_bytes
from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.prune.constraints import Constraints
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.scorers.registry import find_scorer
from kvcompress.prune.session import encode_pruned
from kvcompress.prune.tiers import Tier
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines import eviction_attention, eviction_key_norm, eviction_sink_recent, tokens_only
from kvcompress_eval.baselines.eviction import Eviction, Scorer, best_tokens, keep_count
from kvcompress_eval.baselines.eviction_attention import WindowAttention
from kvcompress_eval.baselines.eviction_key_norm import KeyNorm
from kvcompress_eval.baselines.eviction_sink_recent import SinkRecent
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from tests.fidelity.models import build, tokens, whole_logits

SESSION_TOKENS = 90


@cache
def model(family: str = "llama") -> Any:
    return build(family).float()


def recorded(count: int = SESSION_TOKENS, family: str = "llama") -> KVSnapshot:
    return capture(model(family), tokens(count))


def scorers() -> list[Scorer]:
    return [SinkRecent(), KeyNorm(), KeyNorm(0.25), WindowAttention(model())]


def families() -> list[Baseline]:
    calibration = Calibration(model(), None, [])
    modules = (eviction_sink_recent, eviction_key_norm, eviction_attention, tokens_only)
    return [baseline for module in modules for baseline in module.family(calibration)]


def positions(scorer: Scorer, keep_fraction: float, snapshot: KVSnapshot) -> list[list[int]]:
    baseline = Eviction(scorer, keep_fraction)
    return [layer.positions.tolist() for layer in baseline.decode(baseline.encode(snapshot)).layers]


@pytest.mark.parametrize("baseline", families(), ids=lambda baseline: baseline.name)
def test_kept_tokens_are_the_original_ones_at_their_positions(baseline: Baseline) -> None:
    snapshot = recorded()
    data = to_bytes(baseline.encode(snapshot))
    assert to_bytes(baseline.encode(recorded())) == data
    encoded = from_bytes(data)
    assert encoded.raw_bytes == snapshot.raw_bytes
    decoded = baseline.decode(encoded)
    assert torch.equal(decoded.token_ids, snapshot.token_ids)
    assert decoded.origin == snapshot.origin
    assert len({len(layer.positions) for layer in decoded.layers}) == 1
    for ours, exact in zip(decoded.layers, snapshot.layers, strict=True):
        for mine, theirs in ((ours.keys, exact.keys), (ours.values, exact.values)):
            stored = theirs if baseline.family == "tokens" else theirs.half().float()
            assert torch.equal(mine, stored[:, ours.positions])


@pytest.mark.parametrize("count", [6, 40, 90])
@pytest.mark.parametrize("keep_fraction", [0.5, 0.2, 1 / 32])
def test_sinks_and_the_newest_stay(keep_fraction: float, count: int) -> None:
    kept = max(5, math.ceil(keep_fraction * count))
    expected = [0, 1, 2, 3, *range(count - kept + 4, count)]
    assert positions(SinkRecent(), keep_fraction, recorded(count)) == [expected, expected]


@pytest.mark.parametrize("keep_fraction", [0.5, 0.1])
def test_the_shortest_keys_stay(keep_fraction: float) -> None:
    snapshot = recorded()
    kept = math.ceil(keep_fraction * SESSION_TOKENS)
    for layer, found in zip(snapshot.layers, positions(KeyNorm(), keep_fraction, snapshot), strict=True):
        norms = [sum(float(layer.keys[head, t].norm()) for head in range(2)) for t in range(SESSION_TOKENS)]
        assert found == sorted(sorted(range(SESSION_TOKENS), key=norms.__getitem__)[:kept])
        assert found != list(range(SESSION_TOKENS - kept, SESSION_TOKENS))


def test_a_quarter_of_what_is_kept_may_be_the_newest() -> None:
    for norm, mixed in zip(
        positions(KeyNorm(), 0.4, recorded()), positions(KeyNorm(0.25), 0.4, recorded()), strict=True
    ):
        assert mixed[-9:] == list(range(SESSION_TOKENS - 9, SESSION_TOKENS))
        assert set(mixed[:-9]) <= set(norm)


def attention_of_one_pass(family: str) -> list[Tensor]:
    """Probabilities [heads, T, T] of each layer, by one pass over everything without a cache."""
    eager = build(family).float()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return [rows[0] for rows in eager(tokens(SESSION_TOKENS)[None], output_attentions=True).attentions]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("keep_fraction", "window"), [(0.8, 32), (0.5, 23), (0.1, 5)])
def test_what_the_last_queries_attend_to_stays(keep_fraction: float, window: int, family: str) -> None:
    found = positions(WindowAttention(model(family)), keep_fraction, recorded(family=family))
    early, kept = SESSION_TOKENS - 32, math.ceil(keep_fraction * SESSION_TOKENS)
    for rows, layer in zip(attention_of_one_pass(family), found, strict=True):
        mass = rows[:, -32:].mean(0).sum(0).tolist()
        pooled = [sum(mass[max(0, t - 3) : min(early, t + 4)]) / 7 for t in range(early)]
        pooled += mass[early:]
        newest = list(range(SESSION_TOKENS - window, SESSION_TOKENS))
        others = sorted(range(SESSION_TOKENS - window), key=lambda t: -pooled[t])
        assert layer == sorted(others[: kept - window] + newest)


def test_observing_leaves_the_model_as_it_was() -> None:
    observed = build("llama").float()
    before = observed.config._attn_implementation
    scorer = WindowAttention(observed)
    first = scorer.score(capture(observed, tokens(60)), 30)
    assert observed.config._attn_implementation == before
    own = {id(parameter) for parameter in observed.parameters()}
    assert {id(parameter) for parameter in scorer.observer().model.parameters()} == own
    assert all(map(torch.equal, first, scorer.score(capture(observed, tokens(60)), 30)))


def masked_logits(snapshot: KVSnapshot, kept: list[Tensor], following: Tensor) -> Tensor:
    """Continue from the whole cache, hiding in each layer's attention what was dropped."""
    eager = build("llama").float()
    eager.set_attn_implementation("eager")
    held, fed = snapshot.tokens, len(following)

    def hide(index: int) -> Any:
        mask = torch.full((1, 1, fed, held + fed), -torch.inf)
        mask[..., kept[index]] = 0.0
        mask[..., held:] = torch.full((fed, fed), -torch.inf).triu(1)
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask})

    rounded = tuple(
        dataclasses.replace(layer, keys=layer.keys.half().float(), values=layer.values.half().float())
        for layer in snapshot.layers
    )
    cache = restore(dataclasses.replace(snapshot, layers=rounded), eager)  # before hooks: it looks at the model
    for index, block in enumerate(eager.model.layers):
        block.self_attn.register_forward_pre_hook(hide(index), with_kwargs=True)
    with torch.no_grad():
        logits: Tensor = eager(
            following[None], past_key_values=cache, position_ids=torch.arange(held, held + fed)[None]
        ).logits[0]
    return logits


@pytest.mark.parametrize("keep_fraction", [0.5, 0.1])
@pytest.mark.parametrize("scorer", scorers(), ids=lambda scorer: scorer.name)
def test_a_pruned_cache_resumes_as_the_whole_one_with_the_dropped_tokens_hidden(
    scorer: Scorer, keep_fraction: float
) -> None:
    snapshot, following = recorded(), tokens(12, seed=7)
    baseline = Eviction(scorer, keep_fraction)
    decoded = baseline.decode(baseline.encode(snapshot))
    resumed = feed(model(), restore(decoded, model()), following, SESSION_TOKENS)
    kept = [layer.positions for layer in decoded.layers]
    assert torch.allclose(resumed, masked_logits(snapshot, kept, following), atol=1e-4)
    everything = [torch.arange(SESSION_TOKENS)] * 2
    assert not torch.allclose(resumed, masked_logits(snapshot, everything, following), atol=1e-2)


def test_layers_that_keep_different_tokens_are_among_those_resumed() -> None:
    assert len({tuple(layer) for layer in positions(KeyNorm(), 0.1, recorded())}) == 2


@pytest.mark.parametrize("count", [0, 1, 5, 33])
@pytest.mark.parametrize("baseline", families(), ids=lambda baseline: baseline.name)
def test_edges_work(baseline: Baseline, count: int) -> None:
    snapshot = recorded(count)
    decoded = baseline.decode(from_bytes(to_bytes(baseline.encode(snapshot))))
    assert decoded.tokens == count
    for layer in decoded.layers:
        assert min(count, 5) <= layer.keys.shape[1] == layer.values.shape[1] == len(layer.positions)
    logits = feed(model(), restore(decoded, model()), tokens(3), count)
    assert bool(torch.isfinite(logits).all())


def test_ties_go_to_the_newest_and_counts_are_rounded_up() -> None:
    assert best_tokens(torch.tensor([1.0, 3.0, 1.0, 1.0, 2.0]), 3).tolist() == [1, 3, 4]
    assert [keep_count(n, 0.1) for n in (0, 3, 5, 50, 51, 100)] == [0, 3, 5, 5, 6, 10]
    for wrong in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(InputError, match="keep fraction"):
            Eviction(KeyNorm(), wrong)


def test_file_size_is_that_of_the_kept_tokens() -> None:
    snapshot = recorded(240)
    for scorer in scorers():
        encoded = Eviction(scorer, 0.25).encode(snapshot)
        assert len(encoded.sections["cache"]) == snapshot.raw_bytes // 4
        assert len(to_bytes(encoded)) < snapshot.raw_bytes // 4 + 4096


def test_tokens_alone_bring_the_cache_back_and_hold_nothing_else() -> None:
    baseline = tokens_only.family(Calibration(model(), None, []))[0]
    snapshot = recorded()
    encoded = baseline.encode(snapshot)
    assert set(encoded.sections) == {"tokens", "origin"}
    resumed = feed(model(), restore(baseline.decode(encoded), model()), tokens(9, seed=3), SESSION_TOKENS)
    whole = whole_logits(model(), torch.cat([snapshot.token_ids, tokens(9, seed=3)]))
    assert torch.allclose(resumed, whole[SESSION_TOKENS:], atol=1e-3)


def test_sliding_windows_are_refused_by_eviction_and_refilled_by_tokens() -> None:
    snapshot = recorded(family="mistral")
    with pytest.raises(InputError, match="sliding window"):
        Eviction(KeyNorm(), 0.5).encode(snapshot)
    baseline = tokens_only.family(Calibration(model("mistral"), None, []))[0]
    decoded = baseline.decode(baseline.encode(snapshot))
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(decoded.layers, snapshot.layers, strict=True))


def test_wrong_models_are_refused_where_a_model_is_needed() -> None:
    torch.manual_seed(1)
    foreign = build("llama").float()
    with torch.no_grad():
        foreign.model.embed_tokens.weight += 0.1
    snapshot = recorded()
    for baseline in (Eviction(WindowAttention(foreign), 0.5), tokens_only.TokensOnly(foreign)):
        with pytest.raises(MismatchError, match="weights"):
            baseline.encode(snapshot)
    with pytest.raises(MismatchError, match="weights"):
        tokens_only.TokensOnly(foreign).decode(tokens_only.TokensOnly(model()).encode(snapshot))


def test_pruned_caches_are_refused_where_all_tokens_are_needed() -> None:
    pruned = Eviction(SinkRecent(), 0.5).prune(recorded())
    with pytest.raises(InputError, match="pruned already"):
        Eviction(WindowAttention(model()), 0.5).encode(pruned)
    with pytest.raises(InputError, match="lacks tokens"):
        tokens_only.TokensOnly(model()).encode(pruned)


def test_a_model_that_does_not_show_its_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = recorded(60)
    monkeypatch.delattr(sys.modules[type(model()).__module__], "eager_attention_forward")
    with pytest.raises(InputError, match="does not show the attention"):
        Eviction(WindowAttention(model()), 0.5).encode(snapshot)


@pytest.mark.parametrize(
    "baseline", [Eviction(KeyNorm(), 0.5), tokens_only.TokensOnly(model())], ids=["norm", "tokens"]
)
def test_damaged_and_foreign_files_are_refused(baseline: Baseline) -> None:
    encoded = baseline.encode(recorded(40))
    with pytest.raises(MismatchError, match="the codec"):
        baseline.decode(Eviction(SinkRecent(), 0.5).encode(recorded(40)))
    with pytest.raises(FormatError, match="spare"):
        baseline.decode(dataclasses.replace(encoded, sections={**encoded.sections, "spare": b"1"}))
    for section in set(encoded.sections) - {"tokens", "origin", "positions"}:
        for damaged in (encoded.sections[section] + b"\0\0", encoded.sections[section][:-2]):
            with pytest.raises(FormatError):
                baseline.decode(dataclasses.replace(encoded, sections={**encoded.sections, section: damaged}))


@pytest.mark.parametrize("scorer", ["attention_mass", "key_norm", "output_sensitivity"])
@pytest.mark.parametrize("codec", [Int8Codec, LosslessCodec])
def test_any_scorer_and_exact_tokens_compose_with_any_codec(codec: Any, scorer: str) -> None:
    snapshot, chosen = recorded(), find_scorer(scorer)
    floor = torch.zeros(SESSION_TOKENS, dtype=torch.int64)
    floor[30:33] = int(Tier.EXACT)
    evidence = collect(model(), snapshot, chosen.needs)
    encoded = encode_pruned(codec().encode, evidence, chosen, Constraints(floor, 0.25))
    decoded = WithExact(codec()).decode(from_bytes(to_bytes(encoded)))
    score = chosen.score(evidence).clone()
    score[30:33] = math.inf
    kept = score.argsort(descending=True)[: math.ceil(SESSION_TOKENS / 4)].sort().values
    for ours, exact in zip(decoded.layers, snapshot.layers, strict=True):
        assert torch.equal(ours.positions, kept)
        at = int((kept == 30).nonzero())
        assert torch.equal(ours.values[:, at : at + 3], exact.values[:, 30:33])
