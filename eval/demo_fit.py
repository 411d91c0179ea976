"""The demonstration on a model of one's own: harvest, fit, and one session the whole way, each step a real command.

Every step says what it does, and then the figure that matters.
"""

from __future__ import annotations

import time
from pathlib import Path

from eval.demo import SESSIONS, first_question, run

CALIBRATION_SHARE = 0.35
"""Of 64 sessions 22 fit nothing: a promise takes 19."""


def demo_fit(model: str, codec: Path, out: Path, session_id: str, tokens: int, quality: str | None) -> None:
    """Fit a codec for a model from the example sessions, then store, look at, bring back and go on with one of them.

    Args:
        model: Model directory.
        codec: Directory of the codec; one that lies there is taken as it is.
        out: Directory of shards, files and report.
        session_id: Session of `examples/sessions.jsonl`.
        tokens: Tokens stored.
        quality: Quality word; None takes the default of `kvcompress encode`.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (codec / "config.json").exists():
        fit_codec(model, codec, out / "shards", tokens)
    raw, kvz, again = (str(out / name) for name in ("raw.safetensors", "session.kvz", "again.safetensors"))
    partners = ("--model", model, "--codec", str(codec))
    source = ("--session", str(SESSIONS), "--id", session_id)
    step("Record a session: the model reads it once, and its cache is kept as it is")
    recorded = run("record", *source, "--tokens", str(tokens), "--model", model, "-o", raw, "--force")
    figure(f"{recorded['tokens']:,} tokens, {recorded['raw_bytes']:,} bytes at 16 bits a value")
    step("Encode it")
    wish = ("--quality", quality) if quality else ()
    stored = run("encode", raw, "-o", kvz, *wish, "--codec", str(codec), "--force")
    figure(
        f"{stored['file_bytes']:,} bytes: {stored['size_ratio']:.1f} times smaller, in {stored['encode_seconds']:.2f} s"
    )
    step("Inspect the file: its header alone says what it holds")
    seen = run("inspect", kvz, "--codec", str(codec))
    figure(f"{seen['bits_per_value']:.2f} bits a value, settings {seen['settings']}")
    step("Decode it: the cache as tensors again")
    started = time.perf_counter()
    run("decode", kvz, "-o", again, "--codec", str(codec), "--force")
    figure(f"{Path(again).stat().st_size:,} bytes in {time.perf_counter() - started:.1f} s, starting Python included")
    resume(raw, kvz, partners, first_question(session_id))
    step("Report: what the model loses that goes on from the file")
    report = run("report", kvz, *source, *partners, "-o", str(out))
    figure(f"KL {report['kl_nats']:.4f} nats, context lost {report['context_lost']:.2%}, {report['verdict']}")
    faster = report["prefill_seconds"] / report["restore_seconds"]
    figure(f"restoring is {faster:.1f} times as fast as prefilling; the report: {out / 'report.html'}")


def fit_codec(model: str, codec: Path, shards: Path, tokens: int) -> None:
    """Harvest the example sessions and fit a codec; both go on where they were killed."""
    step(f"Harvest: the model reads all sessions of {SESSIONS} once, and their caches go to disk")
    if not (shards / "index.jsonl").exists():
        sizes = ("--tokens", str(tokens + 256), "--calibration-share", str(CALIBRATION_SHARE))
        held = run("harvest", "--model", model, "--sessions", str(SESSIONS), *sizes, "-o", str(shards))
        figure(f"{held['sessions']} sessions, {held['tokens']:,} tokens, {held['file_bytes'] / 1e9:.2f} GB")
    step("Fit: a codec in closed form, then what it can promise is measured on sessions that fitted nothing")
    fitted = run("fit", "--shards", str(shards), "--model", model, "-o", str(codec))
    figure(
        f"{fitted['file_bytes']:,} bytes in {fitted['fit_seconds']:.0f} s, at most {fitted['peak_bytes'] / 1e9:.1f} GB"
    )
    figure(f"promised: {fitted['promises']}")


def resume(raw: str, kvz: str, partners: tuple[str, ...], question: str) -> None:
    """Ask the same from the exact cache and from the file."""
    step("Resume with a prompt, from the exact cache and from the file")
    asked = ("--prompt", question, "--max-new-tokens", "48", *partners)
    whole, resumed = (run("resume", place, *asked) for place in (raw, kvz))
    figure(f"{question}\n   uninterrupted: {whole['text']}\n   resumed:       {resumed['text']}")


def step(what: str) -> None:
    """Say what the next command does."""
    print(f"\n## {what}", flush=True)


def figure(what: str) -> None:
    """Say what came out."""
    print(f"=> {what}", flush=True)
