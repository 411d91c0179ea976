"""`kvcompress store`: every command does what it says, prints one JSON object, and fails in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kvcompress as kv
from kvcompress.cli.app import app
from kvcompress.errors import KVCompressError
from kvcompress.format.raw_snapshot import save_raw
from kvcompress.store.segment import part_of
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

WHOLE = snapshot_of(ids_of(40))


def run(*words: object) -> dict[str, Any]:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*words: object) -> str:
    """The one line with which a command fails."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(done.exception, KVCompressError), done.output
    assert "\n" not in str(done.exception)
    assert done.exception.remedy
    return str(done.exception)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    run("store", "init", tmp_path / "s")
    for tokens in (10, 25, 40):
        save_raw(tmp_path / f"{tokens}.safetensors", part_of(WHOLE, 0, tokens))
        run("store", "append", tmp_path / "s", "talk", tmp_path / f"{tokens}.safetensors", "--lossless")
    return tmp_path / "s"


def test_a_session_is_appended_to_looked_at_and_gone_back_in(place: Path) -> None:
    told = run("store", "list", place)["sessions"]
    assert [(one["name"], one["tokens"], one["entries"]) for one in told] == [("talk", 40, 3)]
    assert run("store", "checkpoint", place, "talk", "end")["name"] == "end"
    assert run("store", "rewind", place, "talk", "--to", "1")["tokens"] == 25
    assert run("store", "rewind", place, "talk", "--to", "end")["tokens"] == 40
    assert run("store", "peek", place, "talk")["entry"] == 2
    assert run("store", "pop", place, "talk")["entry"] == 2
    assert run("store", "rewind", place, "talk", "--turns", "1")["tokens"] == 10
    found = run("store", "log", place, "talk", "--entries", "2")
    assert [entry["kind"] for entry in found["entries"]] == ["rewind", "pop"]
    assert (found["count"], found["names"]) == (8, {"end": 3})
    run("store", "branch", place, "talk", "other", "--at", "end")
    differ = run("store", "diff", place, "talk", "other")
    assert (differ["shared_tokens"], len(differ["here"]), len(differ["there"])) == (10, 0, 2)
    assert run("store", "verify", place)["ok"]
    assert run("store", "forget", place, "talk", "end")["kind"] == "forget"
    run("store", "remove", place, "other")
    assert run("store", "gc", place, "--grace", "0", "--max-bytes", "1GB")["segments"] == 2
    assert run("store", "stats", place)["settings"]["max_bytes"] == 10**9


def test_sessions_travel(place: Path, tmp_path: Path) -> None:
    run("store", "export", place, "talk", "-o", tmp_path / "talk.kvs")
    run("store", "init", tmp_path / "t")
    assert run("store", "import", tmp_path / "t", tmp_path / "talk.kvs")["entries"] == 3
    assert run("store", "import", tmp_path / "t", tmp_path / "talk.kvs", "--as", "copy")["session"] == "copy"
    with Store(tmp_path / "t") as store:
        assert same(store.session("copy").snapshot(), WHOLE)
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    told = run("store", "sync", place, tmp_path / "remote")["sessions"]
    assert [(one["direction"], one["segments"]) for one in told] == [("push", 3)]
    told = run("store", "sync", tmp_path / "t", tmp_path / "remote", "--session", "talk", "--as", "third")["sessions"]
    assert [(one["session"], one["direction"], one["entries"]) for one in told] == [("third", "pull", 3)]


def test_encrypted_sessions_travel(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra store)")
    first, second, file = tmp_path / "a.key", tmp_path / "b.key", tmp_path / "talk.kvs"
    run("store", "init", tmp_path / "home", "--new-key", first)
    run("store", "--key-file", first, "append", tmp_path / "home", "talk", tmp_path / "40.safetensors", "--lossless")
    run("store", "--key-file", first, "export", tmp_path / "home", "talk", "-o", file)
    run("store", "--key-file", first, "init", tmp_path / "same")
    assert run("store", "--key-file", first, "import", tmp_path / "same", file)["segments"] == 1
    run("store", "init", tmp_path / "other", "--new-key", second)
    assert "wrong key" in refused("store", "--key-file", second, "import", tmp_path / "other", file)
    run("store", "--key-file", second, "import", tmp_path / "other", file, "--file-key", first)
    assert "the file is encrypted" in refused("store", "import", place, file)
    assert "--readable" in refused("store", "import", place, file, "--file-key", first)
    run("store", "import", place, file, "--file-key", first, "--readable", "--as", "shown")
    with Store(place) as store:
        assert same(store.session("shown").snapshot(), WHOLE)
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")
    assert run("store", "--key-file", first, "sync", tmp_path / "home", tmp_path / "there")["sessions"]
    assert "the place is encrypted" in refused("store", "sync", place, tmp_path / "there")
    run("store", "init", tmp_path / "new", "--new-key", tmp_path / "c.key")
    told = run(
        "store", "--key-file", tmp_path / "c.key", "sync", tmp_path / "new", tmp_path / "there", "--place-key", first
    )
    assert [one["direction"] for one in told["sessions"]] == ["pull"]


def test_text_is_printed_for_people(place: Path, tmp_path: Path) -> None:
    for words in (["list"], ["log"], ["peek"], ["stats"], ["verify"], ["diff"], ["pop"], ["pop"], ["pop"], ["pop"]):
        more = [] if words[0] in ("list", "stats", "verify") else ["talk"]
        done = CliRunner().invoke(app, ["store", *words, str(place), *more, *(["talk"] if words == ["diff"] else [])])
        assert done.exit_code == 0, done.output
        assert done.stdout.strip()
        assert "{" not in done.stdout
    assert done.stdout == "there is no turn\n"


def test_what_cannot_be_is_told_in_one_line(place: Path, tmp_path: Path) -> None:
    assert "no store here" in refused("store", "list", tmp_path)
    assert "already" in refused("store", "init", place)
    assert "no session 'x'" in refused("store", "log", place, "x")
    assert "no checkpoint 'x'" in refused("store", "rewind", place, "talk", "--to", "x")
    assert "entry or back by turns" in refused("store", "rewind", place, "talk")
    assert "exclude" in refused("store", "sync", place, tmp_path / "r", "--push", "--pull")
    assert "no exported session" in refused("store", "import", place, tmp_path / "10.safetensors")
    assert "where the cache" in refused("record", "--text", tmp_path / "t.txt")
    assert "--name" in refused("record", "--text", tmp_path / "t.txt", "--store", place)


def test_models_are_compared_field_by_field(place: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compat", str(tmp_path / "10.safetensors"), "reference-lm", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["verdict"] == "refused"
    assert {"weights", "tokenizer", "rope"} <= {one["name"] for one in found["fields"]}


def test_a_changed_segment_is_named_with_exit_status_one(place: Path) -> None:
    with Store(place) as store:
        path = store.path / "segments" / (digest := store.session("talk").entry(1).segment)[:2] / digest[2:]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    done = CliRunner().invoke(app, ["store", "verify", str(place), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["sessions"]["talk"]["bad"] == 1


def test_short_turns_are_stored_as_tokens_where_the_floor_says_so(place: Path, tmp_path: Path) -> None:
    save_raw(tmp_path / "45.safetensors", snapshot_of(ids_of(45)))
    run("store", "append", place, "short", tmp_path / "40.safetensors", "--lossless")
    save_raw(tmp_path / "t.safetensors", snapshot_of(WHOLE.token_ids.repeat(2)[:44]))
    told = run("store", "append", place, "short", tmp_path / "t.safetensors", "--floor-tokens", "5")
    assert (told["kind"], told["start"], told["tokens"]) == ("tokens", 40, 44)
    assert run("store", "log", place, "short")["entries"][0]["said"]["why"] == "restore floor"


def test_looking_starts_without_torch(place: Path) -> None:
    program = (
        "import sys; from kvcompress.cli.app import app; sys.argv[0] = 'kvcompress'\n"
        "try: app()\nexcept SystemExit as end: assert not end.code\n"
        "loaded = {'torch', 'transformers', 'fsspec', 'cryptography', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    for words in (["list", place], ["log", place, "talk"], ["checkpoint", place, "talk", "c"]):
        command = [sys.executable, "-c", program, "store", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


def test_a_model_is_recorded_gone_on_with_and_restored_in_part(tmp_path: Path) -> None:
    store, text = tmp_path / "s", tmp_path / "t.txt"
    text.write_text("The store keeps what was said.")
    first = run("record", "--text", text, "--tokens", "6", "--store", store, "--name", "talk")
    told = run("record", "--text", text, "--store", store, "--name", "talk")
    assert (first["start"], told["start"], told["entry"]) == (0, 6, 1)
    whole = run("store", "resume", store, "talk", "--max-new-tokens", "4")
    part = run("store", "resume", store, "talk", "--max-new-tokens", "4", "--layers", "2:")
    assert part["new_token_ids"] == whole["new_token_ids"]
    assert 0.5 < part["restored_share"] < 0.7
    said = run("store", "resume", store, "talk", "--prompt", "Hello", "--max-new-tokens", "4", "--save")
    assert said["tokens"] > told["tokens"]
    assert run("store", "verify", store)["ok"]
    assert run("compat", "talk", "reference-lm", "--store", store)["verdict"] == "allowed"
    assert "nothing to save" in refused("store", "resume", store, "talk", "--save")


@pytest.mark.parametrize("prompt", ["", "\ufeff"])
def test_an_empty_prompt_is_nothing_to_save(prompt: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["store", "resume", str(tmp_path), "talk", "--prompt", prompt, "--save"])
    assert "there is nothing to save without --prompt" in str(told.exception)


def test_a_fine_tune_goes_on_where_it_is_asked_for_and_is_measured(tmp_path: Path) -> None:
    model, tokenizer = kv.load_model("reference-lm")
    assert tokenizer is not None
    with Store(tmp_path / "s", create=True) as store:
        ids = tokenizer("<|bos|>" + "The library is open on Monday. " * 30, add_special_tokens=False).input_ids
        store.session("talk", create=True).append(kv.capture(model, ids, tokenizer=tokenizer), quality="high")
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * weight.std(correction=0) * torch.randn(weight.shape, generator=chance)
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    words = ("store", "resume", tmp_path / "s", "talk", "--model", tmp_path / "tuned", "--max-new-tokens", 4)
    assert "ask for other weights" in refused(*words)
    told = run(*words, "--other-weights")
    assert len(told["new_token_ids"]) == 4
    assert 0 < told["measured"]["kl_nats"] < 1
    assert told["measured"]["tokens"] == 64
    for more in (("--save", "--prompt", "Hi"), ("--layers", "1:"), ("--tokens", "5:")):
        assert "other weights" in refused(*words, "--other-weights", *more)
