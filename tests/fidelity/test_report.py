"""Reports: complete, self-contained, and safe against whatever a session says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.errors import InputError
from kvcompress.report import render_html, render_json, render_markdown, write_report
from kvcompress.report.facts import first_difference, headline
from kvcompress.report.page import resumed, strip
from kvcompress.report.spelling import spell

HOSTILE = (
    "</div></span></svg><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "{{ 7 * 7 }} $\\frac{1}{2}$ ``` \"'&amp; \u202e]]> --> \\1 \x00\x1b[31m"
)


def sample() -> dict[str, Any]:
    """Return a report in which every text is hostile."""
    return {
        "title": f"session {HOSTILE}",
        "command": f"kvcompress evaluate {HOSTILE}",
        "verdict": f"resumes {HOSTILE}",
        "versions": {"kvcompress": "0.1.0", HOSTILE: HOSTILE},
        "machine": {"cpu": HOSTILE},
        "model": {"name": HOSTILE, "layers": 6},
        "file": {
            "name": HOSTILE,
            "file_bytes": 38211,
            "raw_bytes": 1572864,
            "size_ratio": 41.2,
            "sections": {"latents": 36000, HOSTILE: 2211},
        },
        "fidelity": {
            "kl_nats": 0.0042,
            "kl_p50_nats": 0.0012,
            "kl_p99_nats": 0.061,
            "kl_max_nats": 0.214,
            "context_worth_nats": 0.71,
            "context_lost": 0.0059,
            "top1_agreement": 0.979,
            "top5_agreement": 1.0,
            "ppl_ratio": 1.0021,
            "rms_probability_change": 0.0134,
            "continuation_tokens": 66,
            "tier": "transparent",
        },
        "timing": {"encode_seconds": 0.4, "restore_seconds": 0.06, "prefill_seconds": 0.38},
        "questions": {"asked": 12, "exact": 11, "exact_uncompressed": 12},
        "resumed_text": f"The code is 7341. Monday {HOSTILE}",
        "uninterrupted_text": f"The code is 7341. Tuesday {HOSTILE}",
        "per_token_kl_nats": [0.001 * index for index in range(66)],
        "per_token_bits": [0.0, 12.5, 90.0, 3.0],
        "tokens_text": ["User", ":\n", HOSTILE, ""],
        "layer_bits": [100, 300, 200],
        "claimed_size_ratios": {HOSTILE: 20.0},
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


def test_json_gives_the_report_back_with_null_for_what_json_cannot_say() -> None:
    report = sample() | {"bound": float("inf"), "bits": torch.tensor([1.5, float("nan")]), "pair": (1, 2)}
    expected = sample() | {"bound": None, "bits": [1.5, None], "pair": [1, 2]}
    assert json.loads(render_json(report)) == expected


def test_the_page_reaches_for_nothing_outside_itself() -> None:
    page = render_html(sample())
    assert set(re.findall(r"\w+://[^\"'\s<>)]*", page)) <= {"http://www.w3.org/2000/svg"}
    found = read(page)
    assert not {"script", "img", "iframe", "link", "object", "embed", "form", "base"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "action", "data"}:
            assert value.startswith("#")


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    page = render_html(sample())
    assert "<script" not in page
    shown = read(page).text
    assert shown.count("<script>document.title='owned'</script>") >= 10
    assert shown.count("{{ 7 * 7 }}") >= 10
    for text in (page, render_markdown(sample())):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), "a terminal would obey these"
    assert "Content-Security-Policy" in page


def test_ids_are_unique_and_references_find_them() -> None:
    page = render_html(sample())
    ids = Counter(value for name, value in read(page).attributes if name == "id")
    assert ids.most_common(1)[0][1] == 1
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {name for group in references for name in group if name} <= set(ids)


def test_every_figure_says_in_words_what_it_shows_and_takes_its_colours_from_the_theme() -> None:
    page = render_html(sample())
    figures = re.findall(r"<svg[^>]*>", page)
    assert len(figures) == 5
    for opening in figures:
        assert 'role="img"' in opening
        assert len(re.findall(r'aria-label="([^"]+)"', opening)[0]) > 20
    drawn = page.split("</style>", 1)[1]
    assert "var(--accent)" in drawn
    assert not re.search(r"#0[1-8]0[1-8]0[1-8]", page)
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawn))
    assert not colours, "these would not follow a dark theme"


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_html(sample()) == render_html(sample())


@pytest.mark.parametrize("missing", [*sample(), "everything"])
def test_what_was_not_measured_is_left_out(missing: str) -> None:
    report = {name: value for name, value in sample().items() if missing not in (name, "everything")}
    assert json.loads(render_json(report)) == report
    assert render_markdown(report).startswith("# ")
    page = render_html(report)
    assert "None" not in read(page).text
    assert ("Facts recalled" in page) == ("questions" in report)


def test_unknown_and_infinite_values_become_a_dash() -> None:
    report = sample()
    report["fidelity"] |= {"context_lost": float("inf"), "tier": None}
    report["per_token_kl_nats"][3] = float("nan")
    page = render_html(report)
    assert "below usable" in page
    assert "inf" not in re.findall(r"Context lost.*?</tr>", page, flags=re.DOTALL)[0]


def test_the_headline_says_size_fidelity_and_tier() -> None:
    assert headline(sample()) == ["41.2\u00d7 smaller", "KL 0.0042 nats", "transparent"]
    assert "**41.2\u00d7 smaller \u00b7 KL 0.0042 nats \u00b7 transparent**" in render_markdown(sample())


def test_numbers_keep_their_meaning_when_spelled() -> None:
    assert spell(1_572_864, "bytes") == "1.57 MB"
    assert spell(999, "bytes") == "999 bytes"
    assert spell(0.061, "seconds") == "61 ms"
    assert spell(3e-6, "nats") == "3.0e-06"
    assert spell(0.0, "nats") == "0.0000"
    assert spell(0.0059, "share") == "0.59 %"
    assert spell(None, "share") == "-"


def test_the_first_difference_is_marked_from_the_start_of_its_word() -> None:
    assert first_difference("same", "same") is None
    assert first_difference("on Monday", "on Tuesday") == 3
    assert first_difference("on Monday", "on Monster") == 3
    assert first_difference("on", "on Monday") == 0
    assert first_difference("on ", "on Monday") == 3
    texts, said = resumed({"resumed_text": "on Monday it", "uninterrupted_text": "on Tuesday it"})
    assert [(text.same, text.differing, text.rest) for text in texts] == [
        ("on ", "Tuesday", " it"),
        ("on ", "Monday", " it"),
    ]
    assert "3 equal characters" in said
    page = render_html(sample())
    assert re.findall(r"<mark>(.*?)</mark>", page) == ["Tuesday", "Monday"]
    same = render_html(sample() | {"resumed_text": "a", "uninterrupted_text": "a"})
    assert "identical" in same
    assert "<mark>" not in same


@pytest.mark.parametrize(("a", "b"), [("", "x"), ("x", ""), ("a b", "a  b"), ("a\nb", "a b"), ("ab", "abc")])
def test_cut_texts_add_up_to_the_texts(a: str, b: str) -> None:
    texts, _ = resumed({"resumed_text": a, "uninterrupted_text": b})
    assert [text.same + text.differing + text.rest for text in texts] == [b, a]
    assert texts[0].same == texts[1].same


def test_tokens_are_shaded_by_their_bits() -> None:
    bits = [0.0, *[float(cost) for cost in range(1, 101)], 1e6]
    found = strip({"per_token_bits": bits, "tokens_text": ["x"] * len(bits)})
    assert found is not None
    levels = [token.level for token in found.tokens]
    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 2, 3, 4, 5}  # one very dear token does not make all others look alike
    assert [level for level, _ in found.legend] == [0, 1, 2, 3, 4, 5]
    assert found.tokens[3].tooltip == "token 3: 3.0 bits"
    free = strip({"per_token_bits": [0, 0], "tokens_text": ["a", "b"]})
    assert free is not None
    assert [token.level for token in free.tokens] == [0, 0]


def test_a_long_session_is_cut_and_the_page_says_so() -> None:
    report = {"per_token_bits": [1.0] * 5000, "tokens_text": ["x"] * 5000}
    assert "1,000 more tokens are not shown" in render_html(report)


def test_markdown_fences_are_longer_than_any_run_in_the_text() -> None:
    lines = render_markdown({"resumed_text": "````\n# no heading", "uninterrupted_text": "x"}).splitlines()
    fence = lines.index("`````text")
    assert lines[fence : fence + 4] == ["`````text", "````", "# no heading", "`````"]
    table = render_markdown({"model": {"na|me": "a\n| b | <script>"}})
    assert "model na\\|me | a \\| b \\| &lt;script&gt; |" in table


def test_three_files_are_written_and_replaced_only_with_force(tmp_path: Path) -> None:
    half = sample() | {"resumed_text": "half \ud83d a character"}
    paths = write_report(half, tmp_path / "new" / "place")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    for path in paths:
        assert "half" in path.read_bytes().decode("utf-8")
    assert json.loads(paths[0].read_text("utf-8"))["resumed_text"] == "half \ud83d a character"
    write_report(sample(), paths[0].parent)
    with pytest.raises(InputError, match="force"):
        write_report(sample(), paths[0].parent, force=False)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.html", "report.json", "report.md"]
    with pytest.raises(InputError, match="directory"):
        write_report(sample(), paths[0] / "below")


def test_reports_cost_nothing_until_they_are_made() -> None:
    code = (
        "import sys, kvcompress.report, kvcompress.report.page; "
        "sys.exit(bool({'matplotlib', 'torch', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_real_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium binary on the path")
    page = write_report(sample(), tmp_path)[-1]
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    more = f"--disable-component-update --user-data-dir={tmp_path / 'profile'} --enable-logging=stderr"
    run = subprocess.run(
        [browser, *flags.split(), *more.split(), "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "CONSOLE" not in run.stderr
    assert "Resumed beside uninterrupted" in run.stdout
    assert re.findall(r"<title>(.*?)</title>", run.stdout, flags=re.DOTALL)[0].startswith("session &lt;")
    assert "<script" not in run.stdout
