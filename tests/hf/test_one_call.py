"""One place calls a model, and one package generates from it: whatever else runs a model goes through these."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = {"model", "language_model", "causal_lm", "_frozen", "_forward"}
MODEL_ARGUMENTS = {"input_ids", "past_key_values", "inputs_embeds", "use_cache", "logits_to_keep"}
FEEDING = {"run", "call", "feed", "feed_rows", "feed_batch"}
CHOOSING = {"argmax", "topk", "multinomial", "_choose"}
NOT_CALLS = {"generate", "prepare_inputs_for_generation"}  # the first has a test of its own, the second runs no layer
RECORDER = "train/sessions.py"
"""Records the bundled sessions with `generate` of transformers, in batches; no cache of ours is in it."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield every file that could hold a model; kvcompress.format may not import what makes one."""
    for package in ("kvcompress", "kvcompress_train", "kvcompress_eval", "train", "eval"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("kvcompress/format/"):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def called(node: ast.Call) -> str:
    """Return the last name of what is called."""
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def model_calls(tree: ast.AST) -> list[int]:
    """Return the lines on which a model is called: by its name, by `forward`, or with what only a model takes."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        node.lineno
        for node in calls
        if called(node) in MODELS | {"forward"}
        or (called(node) not in {*NOT_CALLS, *FEEDING} and MODEL_ARGUMENTS & {word.arg for word in node.keywords})
    ]


def generating_loops(tree: ast.AST) -> list[int]:
    """Return the lines of loops that feed a model and choose a token."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
    named = [(loop, {called(node) for node in ast.walk(loop) if isinstance(node, ast.Call)}) for loop in loops]
    return [loop.lineno for loop, names in named if names & FEEDING and names & CHOOSING]


def test_a_model_is_called_in_one_place() -> None:
    found = [(name, line) for name, tree in sources() for line in model_calls(tree)]
    assert len(found) == 1, found
    assert found[0][0].startswith("kvcompress/hf/")


def makes_a_key(node: ast.Call) -> bool:
    """Return whether a class generates one of its kind, as keys do; models are no classes when they generate."""
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id[0].isupper()


def test_tokens_are_generated_in_hf_alone() -> None:
    loops = {name for name, tree in sources() if generating_loops(tree)}
    assert loops == {f"kvcompress/hf/{name}.py" for name in ("generation", "sampling", "batch")}
    generate = {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) == "generate" and not makes_a_key(node)
    }
    assert generate == {RECORDER}


@pytest.mark.parametrize(
    "text",
    [
        "self.model(ids)",
        "language_model(**options)",
        "model.forward(ids)",
        "net(input_ids=ids)",
        "m(x, use_cache=True)",
    ],
)
def test_a_call_is_seen(text: str) -> None:
    assert model_calls(ast.parse(text)) == [1]


def test_a_loop_is_seen() -> None:
    assert generating_loops(ast.parse("while more:\n    token = feed(model, cache, fed, at).argmax()")) == [1]
    assert not generating_loops(ast.parse("logits = feed(model, cache, fed, at)\nfor row in logits:\n    row.argmax()"))
