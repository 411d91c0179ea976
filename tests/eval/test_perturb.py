"""Perturbed prompts: the same on every machine, changed in words only."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcompress_eval.suite.perturb import PERTURBATIONS, case, paraphrase, typos

PROMPT = "<|im_start|>user\nI don't want it, but can you help me with my letter?<|im_end|>\n<|im_start|>assistant\n"
TEXTS = st.text(st.sampled_from("abcdeXYZ '.\n<|>é中4"), max_size=60)


@pytest.mark.parametrize("rule", PERTURBATIONS)
@given(text=TEXTS)
@settings(deadline=None)
def test_a_rule_gives_the_same_text_each_time(rule: str, text: str) -> None:
    assert PERTURBATIONS[rule](text) == PERTURBATIONS[rule](text)


@pytest.mark.parametrize("rule", PERTURBATIONS)
def test_a_rule_changes_words_and_leaves_special_tokens_and_roles(rule: str) -> None:
    changed = PERTURBATIONS[rule](PROMPT)
    assert changed != PROMPT
    special = r"<\|im_start\|>\w+|<\|im_end\|>"
    assert re.findall(special, changed) == re.findall(special, PROMPT)
    only = "<|im_start|>user\n<|im_end|>"
    assert PERTURBATIONS[rule](only) == only


@given(TEXTS)
@settings(deadline=None)
def test_a_typo_swaps_letters_within_words(text: str) -> None:
    def letters(said: str) -> list[list[str]]:
        return [sorted(word) for word in said.split()]

    assert letters(typos(text)) == letters(text)


@given(TEXTS)
@settings(deadline=None)
def test_case_changes_nothing_else(text: str) -> None:
    assert case(text).casefold() == text.casefold()


def test_a_paraphrase_says_the_same_in_other_words() -> None:
    assert paraphrase("But it's very big.") == "Yet it is quite large."
    assert paraphrase("\n Nobody came.") == "\n In other words, Nobody came."


def test_known_prompts_come_out_as_documented() -> None:
    """Figures of two runs can be compared only while these stay as they are."""
    text = "The weather is very pleasant today because nothing happened."
    assert typos(text) == "The weahter is very pleasant today bceause notihng happened."
    assert case(text) == "the weather IS very pleasant TODAY because NOTHING happened."
    assert paraphrase(text) == "The weather is quite pleasant today since nothing happened."
