"""The suite's report: strict about what goes in, complete and harmless in what comes out."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kvcompress.errors import InputError
from kvcompress.metrics.fidelity import TIERS
from kvcompress.report.spelling import with_error
from kvcompress_eval.suite.report import (
    compare,
    readme_table,
    render_html,
    render_markdown,
    validate,
    write_suite_report,
)
from kvcompress_eval.suite.report.compare import difference_in_errors
from kvcompress_eval.suite.report.facts import baseline_at_same_kl, best_points
from kvcompress_eval.suite.report.markdown import MOST_README_ROWS
from kvcompress_eval.suite.report.promise_table import kept, promise_table
from tests.eval.suite_example import FAMILIES, codec, economics, example, metrics, tails

HOSTILE = (
    "</td></span></svg><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "{{ 7 * 7 }} $\\frac{1}{2}$ ``` | \"'&amp; \u202e]]> --> \u00b1 \\1 \x00\x1b[31m\x9b"
)
OPTIONAL = ("equal_kl", "published", "original_formats", "bound", "hops", "bits_by_layer", "strip")
PLACES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "command": lambda result: result,
    "model.layers": lambda result: result["model"],
    "machine.threads": lambda result: result["machine"],
    "sessions.context_worth_nats.mean": lambda result: result["sessions"]["context_worth_nats"],
    "codecs[1].tier": lambda result: result["codecs"][1],
    "codecs[1].size.file_bytes": lambda result: result["codecs"][1]["size"],
    "codecs[2].fidelity.kl_nats.standard_error": lambda result: result["codecs"][2]["fidelity"]["kl_nats"],
    "codecs[2].recall.by_distance[3].exact": lambda result: result["codecs"][2]["recall"]["by_distance"][3],
    "controls[0].kl_max_nats": lambda result: result["controls"][0],
    "bound[1].rate_over_bound": lambda result: result["bound"][1],
    "economics.link_seconds.raw.100": lambda result: result["economics"]["link_seconds"]["raw"],
    "economics.memory[2].coded_bytes": lambda result: result["economics"]["memory"][2],
    "strip.damage_nats": lambda result: result["strip"],
}


class Page(HTMLParser):
    """Everything in a page that could act or reach out, and all its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    return parser


def small() -> dict[str, Any]:
    """Return the example with five codecs, so that drawing it is quick."""
    result = example()
    kept = [point for point in result["codecs"] if point["family"] in ("raw", "tinyvae", "xkv")]
    for point in kept:
        point["name"] = "raw" if point["family"] == "raw" else point["name"]
    names = {point["name"] for point in kept}
    costs = example()["economics"]
    costs["link_seconds"] |= {"raw": {"10": 2.5, "100": 0.3, "1000": 0.05}}
    for part in ("restore_seconds", "break_even_tokens", "link_seconds", "longest_context_tokens"):
        costs[part] = {name: value for name, value in costs[part].items() if name in names}
    for row in costs["memory"]:
        row["coded_bytes"] = {name: value for name, value in row["coded_bytes"].items() if name in names}
    for row in costs["lengths"]:
        row["restore_seconds"] = {name: value for name, value in row["restore_seconds"].items() if name in names}
    for part in ("hops", "bits_by_layer"):
        result[part] = {name: value for name, value in result[part].items() if name in names}
    return result | {"codecs": kept, "economics": costs}


@cache
def example_page() -> str:
    return render_html(example())


@cache
def small_page() -> str:
    return render_html(small())


@cache
def hostile_page() -> str:
    return render_html(hostile())


def hostile() -> dict[str, Any]:
    """Return a result in which every free text is hostile."""
    result = small()
    ours = result["codecs"][1]
    texts = json.loads(json.dumps(result).replace(json.dumps(ours["name"])[1:-1], json.dumps(f"a{HOSTILE}")[1:-1]))
    texts |= {"title": HOSTILE, "command": HOSTILE, "warning": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    texts["model"]["name"] = texts["sessions"]["file"] = texts["machine"]["processor"] = HOSTILE
    texts["codecs"][0] |= {"family": HOSTILE}
    texts["codecs"][-1] |= {"name": f"b{HOSTILE}", "failed": HOSTILE}
    texts["strip"]["tokens"][3] = texts["strip"]["continuation"][3] = texts["strip"]["session"] = HOSTILE
    texts["controls"][0]["name"] = HOSTILE
    texts["original_formats"] = {HOSTILE: 2.0}
    return dict(texts)


def test_the_example_follows_the_schema_and_survives_json() -> None:
    validate(example())
    validate(small())
    validate(hostile())
    validate(json.loads(json.dumps(example())))


@pytest.mark.parametrize("path", PLACES)
def test_a_missing_field_is_named(path: str) -> None:
    result = small()
    del PLACES[path](result)[path.rpartition(".")[2]]
    expected = path.replace(".100", '["100"]')
    with pytest.raises(InputError, match=f"^{re.escape(expected)} is missing"):
        validate(result)


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("wrong", [object(), b"bytes", {1: 2}])
def test_a_value_of_another_type_is_named(path: str, wrong: object) -> None:
    result = small()
    PLACES[path](result)[path.rpartition(".")[2]] = wrong
    expected = path.replace(".100", '["100"]')
    with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
        validate(result)


@pytest.mark.parametrize("path", PLACES)
def test_an_unknown_field_is_named(path: str) -> None:
    result = small()
    PLACES[path](result)["colour of it"] = "green"
    parent = path.rpartition(".")[0]
    if parent == "machine":
        validate(result)  # a machine may say more of itself
        PLACES[path](result)["colour of it"] = ["green"]
    with pytest.raises(InputError, match=re.escape(f'{parent}["colour of it"]')):
        validate(result)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(number: float) -> None:
    changes: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda result: result["codecs"][1]["fidelity"]["kl_nats"].update(mean=number), "codecs[1].fidelity.kl_nats"),
        (lambda result: result["codecs"][1]["kl_quantiles"][2].__setitem__(1, number), "codecs[1].kl_quantiles[2][1]"),
        (lambda result: result["strip"]["bits"].__setitem__(4, number), "strip.bits[4]"),
        (lambda result: result["machine"].update(gigahertz=number), "machine.gigahertz"),
    ]
    for change, path in changes:
        result = small()
        change(result)
        with pytest.raises(InputError, match=re.escape(path)):
            validate(result)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("schema", lambda result: result.update(schema=2)),
        ("schema", lambda result: result.pop("schema")),
        ("schema", lambda result: result.update(schema=True)),
        ("started", lambda result: result.update(started="yesterday")),
        ("quick", lambda result: result.update(quick=1)),
        ("title", lambda result: result.update(title=" ")),
        ("warning", lambda result: result.pop("warning")),
        ("seeds.branches", lambda result: result["seeds"].update(branches=7.0)),
        ("codecs[1].tier", lambda result: result["codecs"][1].update(tier="superb")),
        ("codecs[1].codec_bytes", lambda result: result["codecs"][1].update(codec_bytes=-1)),
        ("codecs[1].codec_bytes", lambda result: result["codecs"][1].update(codec_bytes=True)),
        ("codecs[1].size", lambda result: result["codecs"][1].update(size=None)),
        ("codecs[1].name", lambda result: result["codecs"][1].update(name=result["codecs"][2]["name"])),
        ("codecs[2].name", lambda result: result["codecs"][2].update(name=result["codecs"][1]["name"])),
        ("codecs[1].size.size_ratio.mean", lambda result: result["codecs"][1]["size"]["size_ratio"].update(mean=0.0)),
        ("top1_agreement.mean", lambda result: result["codecs"][1]["fidelity"]["top1_agreement"].update(mean=1.1)),
        ("codecs[1].kl_quantiles[0]", lambda result: result["codecs"][1]["kl_quantiles"][0].append(1.0)),
        ("codecs[5].failed", lambda result: result["codecs"][5].update(failed="")),
        ("codecs[5].codec_bytes", lambda result: result["codecs"][5].update(codec_bytes="many")),
        ("hops", lambda result: result["hops"].update(unheard=[])),
        ("strip.codec", lambda result: result["strip"].update(codec="unheard")),
        ("strip.bits", lambda result: result["strip"]["bits"].pop()),
        ("strip.damage_nats", lambda result: result["strip"]["continuation"].pop()),
    ],
)
def test_what_contradicts_the_schema_or_itself_is_named(path: str, change: Callable[[dict[str, Any]], Any]) -> None:
    result = small()
    change(result)
    with pytest.raises(InputError) as caught:
        validate(result)
    assert path in str(caught.value) or "occurs twice" in str(caught.value)
    assert re.search(r"\.\s+\w", str(caught.value)), "an error carries its remedy"


@pytest.mark.parametrize("wrong", [None, [], "text", 1])
def test_what_is_no_object_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="object"):
        validate(wrong)


def test_three_files_hold_the_result_and_nothing_is_written_of_a_bad_one(tmp_path: Path) -> None:
    bare = small() | {"codecs": small()["codecs"][-1:], "economics": economics({})}
    bare = {name: value for name, value in bare.items() if name not in OPTIONAL}
    result = small()
    result["strip"]["tokens"][0], result["strip"]["bits"][0] = "half \ud83d a character", 1e6
    before = copy.deepcopy(result)
    paths = write_suite_report(result, tmp_path / "new" / "place")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert json.loads(paths[0].read_text("utf-8")) == result == before
    for path in paths[1:]:
        assert "half" in path.read_bytes().decode("utf-8")
    write_suite_report(result, paths[0].parent)  # replaced
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.html", "report.json", "report.md"]
    result["codecs"][1]["fidelity"]["kl_nats"]["mean"] = math.nan
    with pytest.raises(InputError, match="kl_nats"):
        write_suite_report(result, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="directory"):
        write_suite_report(bare, paths[0] / "below")


def test_every_codec_is_named_and_a_failed_one_with_its_reason() -> None:
    result = example()
    pages = (read(example_page()).text, render_markdown(result).replace("\\", ""))
    for text in pages:
        for point in result["codecs"]:
            assert point["name"] in text
        assert "singular matrix in layer 3" in text
    legend = re.findall(r"<svg.*?</svg>", example_page(), flags=re.DOTALL)[0]
    for family in FAMILIES:
        assert f">{family}</text>" in legend


def test_the_page_reaches_for_nothing_outside_itself_and_obeys_no_text() -> None:
    page = hostile_page()
    found = read(page)
    assert set(re.findall(r"\w+://[^\"'\s<>)]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not {"script", "img", "iframe", "link", "object", "embed", "form", "base"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "action", "data"}:
            assert value.startswith("#")
    assert "Content-Security-Policy" in page
    assert "<script" not in page
    assert found.text.count("<script>document.title='owned'</script>") >= 20
    assert found.text.count("{{ 7 * 7 }}") >= 20
    for text in (page, render_markdown(hostile()), readme_table(hostile())):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), "a terminal would obey these"
    for line in render_markdown(hostile()).splitlines():
        if line.startswith("|"):
            assert "<script" not in line


def test_hostile_names_break_no_row_of_a_table() -> None:
    tables = re.split(r"\n\n", render_markdown(hostile()))
    checked = 0
    for table in tables:
        if table.startswith("| "):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(cells) == 1
            checked += 1
    assert checked > 10


def test_ids_are_unique_and_references_find_them() -> None:
    page = hostile_page()
    ids = Counter(value for name, value in read(page).attributes if name == "id")
    assert ids.most_common(1)[0][1] == 1
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {name for group in references for name in group if name} <= set(ids)


def test_the_same_result_gives_the_same_bytes() -> None:
    assert render_html(small()) == small_page()


def test_every_colour_of_a_figure_follows_the_theme() -> None:
    page = example_page()
    figures = page.split("</style>", 1)[1]
    assert not re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", figures)
    used = set(re.findall(r"var\(--([\w-]+)\)", figures))
    assert {f"family-{index}" for index in range(1, 8)} <= used
    light, dark = page.split("prefers-color-scheme: dark")
    for name in used:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark.split("</style>")[0]
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', page)) == 12 == page.count("<svg ")
    assert page.count('<div class="narrow"><svg ') == 3 == 12 - page.count("<figcaption>")


def test_the_main_table_has_a_row_for_each_measured_codec_ours_first() -> None:
    result = example()
    lines = render_markdown(result).splitlines()
    head = next(index for index, line in enumerate(lines) if line == "## All codecs")
    start = next(index for index in range(head, len(lines)) if lines[index].startswith("| ---"))
    rows = lines[start + 1 : lines.index("", start)]
    measured = [point for point in result["codecs"] if point["failed"] is None]
    assert len(rows) == len(measured) == sum(len(ratios) for ratios, _ in FAMILIES.values())
    families = [row.split("|")[2].strip() for row in rows]
    assert families == sorted(families, key=lambda name: ({"tinyvae": 0, "kvtc": 1}.get(name, 2), name))
    ours = [float(row.split("|")[4].split("\N{MULTIPLICATION SIGN}")[0]) for row in rows[:4]]
    assert ours == sorted(ours)


def test_the_best_point_of_a_tier_is_found_among_all_that_keep_its_promise() -> None:
    result = example()
    for best, tier in zip(best_points(result), TIERS, strict=True):
        for side, point in ((True, best.ours), (False, best.baseline)):
            kept = [
                row["size"]["size_ratio"]["mean"]
                for row in result["codecs"]
                if row["failed"] is None
                and (row["family"] == "tinyvae") == side
                and row["fidelity"]["kl_nats"]["mean"] <= tier.max_kl_nats
                and row["fidelity"]["context_lost"]["mean"] <= tier.max_context_lost
                and row["fidelity"]["top1_agreement"]["mean"] >= tier.min_top1_agreement
            ]
            assert point is not None
            assert point["size"]["size_ratio"]["mean"] == max(kept)


def test_the_baseline_at_the_same_kl_lies_on_the_line_between_its_points() -> None:
    def point(name: str, family: str, ratio: float, kl: float) -> dict[str, object]:
        measured = {"size": {"size_ratio": {"mean": ratio}}, "fidelity": {"kl_nats": {"mean": kl}}}
        return {"name": name, "family": family, "failed": None, **measured}

    ours = point("tinyvae-a", "tinyvae", 50.0, 0.01)
    rows = [ours, point("k1", "kvtc", 4.0, 0.001), point("k2", "kvtc", 16.0, 0.1), point("i", "int8", 99.0, 0.5)]
    rows += [point("tokens", "tokens", 900.0, 0.001), point("tokens2", "tokens", 990.0, 0.1)]
    family, ratio = baseline_at_same_kl({"codecs": rows}, ours) or ("", 0.0)
    assert family == "kvtc"
    assert ratio == pytest.approx(8.0)  # half-way in both logarithms
    assert baseline_at_same_kl({"codecs": rows[:2]}, ours) is None


def test_a_rate_chosen_beforehand_stands_for_its_tier() -> None:
    result = example()
    ours = [row for row in result["codecs"] if row["family"] == "tinyvae"]
    largest = best_points(result)[0].ours
    chosen = next(row for row in ours if row["tier"] == "transparent" and row["name"] != largest["name"])
    chosen["name"] = "tinyvae-transparent"
    assert best_points(result)[0].ours is chosen


def test_a_promise_is_kept_only_where_all_three_bounds_hold() -> None:
    text = json.dumps(small()).replace("tinyvae-41x", "tinyvae-transparent").replace("tinyvae-260.6x", "tinyvae-high")
    result = json.loads(text)
    ours = {point["name"]: point for point in result["codecs"]}
    ours["tinyvae-high"]["fidelity"]["top1_agreement"]["mean"] = 0.93
    ours["tinyvae-transparent"]["whole"] = {"fidelity": metrics(0.004), "tails": tails(0.004)}
    ours["tinyvae-transparent"]["fidelity"] |= metrics(0.001)
    table = promise_table(result)
    assert table is not None
    names = [column.name for column in table.columns]
    rows = {row.cells[0]: dict(zip(names, row.cells, strict=True)) for row in table.rows}
    assert set(rows) == {"tinyvae-transparent", "tinyvae-high"}
    assert rows["tinyvae-transparent"]["all three"] == "kept"
    assert rows["tinyvae-transparent"]["KL, nats"] == "0.0010 / 0.0050"
    assert rows["tinyvae-transparent"]["over the whole"] == "kept"
    assert rows["tinyvae-high"]["all three"] == "missed: top-1"
    assert rows["tinyvae-high"]["over the whole"] == "-"
    assert promise_table(small()) is None
    lost = metrics(0.03) | {"top1_agreement": {"mean": 0.99}}
    assert kept(lost, TIERS[0]) == "missed: KL, context lost"
    assert kept(lost, TIERS[2]) == "kept"


def test_the_warning_is_the_first_line_of_every_report() -> None:
    result = small() | {"warning": "the context is worth little"}
    for text in (render_markdown(result), readme_table(result)):
        assert "the context is worth little" in text.splitlines()[0]
    first = re.findall(r"<body>\s*<div class=\"warning\"[^>]*>(.*?)</div>", render_html(result), flags=re.DOTALL)
    assert [read(said).text for said in first] == ["Warning: the context is worth little"]
    assert "Warning" not in small_page()


@pytest.mark.parametrize("missing", [("bound", "hops", "strip"), ("recall", "lengths", "bits_by_layer", "failures")])
def test_what_was_not_measured_is_left_out(missing: tuple[str, ...]) -> None:
    result = small()
    for name in set(missing) & set(OPTIONAL):
        result[name] = None
    if "lengths" in missing:
        del result["economics"]["lengths"]
    if "failures" in missing:
        del result["codecs"][-1]
    for point in result["codecs"] if "recall" in missing else ():
        point |= {"recall": None, "instructions": None}
        point.pop("attention_error_by_layer", None)
    validate(result)
    page, text = read(render_html(result)).text, render_markdown(result)
    for found in (page, text):
        assert "None" not in found
        assert ("Distance to the bound" in found) == ("bound" not in missing)
        assert ("Drift over hops" in found) == ("hops" not in missing)
        assert ("Facts recalled by distance" in found) == ("recall" not in missing)
        assert ("Restore and prefill by length" in found) == ("lengths" not in missing)
        assert ("Bits a value by layer" in found) == ("bits_by_layer" not in missing)
        assert ("Not measured" in found) == ("failures" not in missing)
    assert ("Damage along the continuation" in page) == ("strip" not in missing)
    assert ("Most damaged tokens" in text) == ("strip" not in missing)


@pytest.mark.parametrize("gone", ["tinyvae", ""])
def test_a_run_in_which_codecs_failed_still_has_its_report(gone: str) -> None:
    result = small()
    for point in result["codecs"]:
        if point["family"].startswith(gone) and point["failed"] is None:
            point["failed"] = "no memory"
    for name in OPTIONAL:
        result[name] = result[name] if gone else None
    page = render_html(result)
    assert "keeps no tier" in page
    assert page.count("no memory") == (3 if gone else 4) + 1
    assert ("<svg " in page) == bool(gone)
    assert readme_table(result).startswith("| codec |")


def test_the_readme_table_keeps_the_largest_ratio_of_each_family_and_tier() -> None:
    result = example()
    table = readme_table(result)
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == MOST_README_ROWS
    for name in ("tinyvae-89.1x", "tinyvae-260.6x", "tinyvae-915.3x", "kvtc-6.2x", "kvtc-26x", "kvtc-41x"):
        assert sum(row.startswith(f"| {name} |") for row in rows) == 1
    assert not any(row.startswith("| tinyvae-41x |") for row in rows)
    last = table.splitlines()[-1]
    for said in ("24 sessions", "1,024 tokens", "0.770", "`python -m eval suite --out reports/suite`", "left out"):
        assert said in last
    few = [line for line in readme_table(small()).splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in few] == ["| tinyvae-89.1x", "| raw", "| tinyvae-260.6x", "| tinyvae-915.3x"]


def test_errors_are_spelled_with_the_digits_of_their_means() -> None:
    assert with_error({"mean": 89.13, "standard_error": 1.78}, "ratio") == "89.1\u00d7 \u00b1 1.8"
    assert with_error({"mean": 0.00412, "standard_error": 0.00031}, "nats") == "0.0041 \u00b1 0.0003"
    assert with_error({"mean": 0.0053, "standard_error": 0.0004}, "share") == "0.53 \u00b1 0.04 %"
    assert with_error({"mean": 0.5, "standard_error": None}, "share") == "50.0 %"
    assert with_error(None, "nats") == "-"


def test_a_difference_is_held_against_both_errors() -> None:
    a, b = {"mean": 10.0, "standard_error": 3.0}, {"mean": 20.0, "standard_error": 4.0}
    assert difference_in_errors(a, b) == pytest.approx(2.0)
    assert difference_in_errors(b, a) == pytest.approx(-2.0)
    assert difference_in_errors(a, b | {"standard_error": None}) is None
    assert difference_in_errors(a | {"standard_error": 0.0}, b | {"standard_error": 0.0}) == math.inf
    assert difference_in_errors(a | {"standard_error": 0.0}, a | {"standard_error": 0.0}) == 0.0


def test_only_a_change_beyond_two_errors_is_flagged() -> None:
    a, b = small(), small()
    assert "0 of 5 codecs differ" in compare(a, b)
    kl = b["codecs"][1]["fidelity"]["kl_nats"]
    combined = kl["standard_error"] * math.sqrt(2)
    mean = kl["mean"]
    for errors, flagged in ((1.9, False), (2.1, True), (-1.9, False), (-2.1, True)):
        kl["mean"] = mean + errors * combined
        said = compare(a, b)
        assert ("1 of 5 codecs differ" in said) == flagged
        row = next(line for line in said.splitlines() if line.startswith(f"| {b['codecs'][1]['name']} "))
        assert (row.split("|")[-2].strip() == f"KL {'higher' if errors > 0 else 'lower'}") == flagged
        assert f"{errors:+.1f}" in row
        assert sum("KL higher" in line or "KL lower" in line for line in said.splitlines()) == int(flagged)


def test_codecs_of_one_result_alone_are_named() -> None:
    a, b = small(), small()
    b["codecs"].append(codec("new", 3.0, 0.01, name="new-one"))
    b["codecs"][0] = {"name": "raw", "family": "raw", "failed": "disk full"}
    said = compare(a, b)
    assert "Only in the first: raw (failed in the other: disk full)." in said
    assert "Only in the second: new-one." in said


def test_meaningless_comparisons_are_refused_and_doubtful_ones_marked() -> None:
    for name, value in (("file", "other.jsonl"), ("count", 3), ("tokens", 512), ("continuation_tokens", 64)):
        other = small()
        other["sessions"][name] = value
        with pytest.raises(InputError, match=f"different sessions: {name}"):
            compare(small(), other)
    with pytest.raises(InputError, match="second result: schema is 2"):
        compare(small(), small() | {"schema": 2})
    other = small()
    other["model"]["weights"] = "sha256:ffff"
    assert "Warning: the models differ" in compare(small(), other)
    assert "Warning" not in compare(small(), small())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", compare(hostile(), hostile()))


def test_a_real_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium binary on the path")
    page = tmp_path / "report.html"
    page.write_text(hostile_page(), "utf-8")
    shot = tmp_path / "page.png"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    more = (
        f"--disable-component-update --hide-scrollbars --user-data-dir={tmp_path / 'profile'} --enable-logging=stderr"
    )
    look = ["--window-size=1200,3000", f"--screenshot={shot}", "--virtual-time-budget=2000"]
    run = subprocess.run(
        [browser, *flags.split(), *more.split(), *look, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "CONSOLE" not in run.stderr
    content = shot.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [1200, 3000]
    assert len(content) > 60_000, "an empty page is smaller"
