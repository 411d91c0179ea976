"""The demonstration: every step is the installed command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kvcompress.data.sessions import find_session
from kvcompress.report.terminal import print_table

SESSIONS = Path("examples/sessions.jsonl")


def run(*arguments: str) -> dict[str, Any]:
    """Run one `kvcompress` command and return its JSON result; its errors and progress pass through."""
    print(f"$ kvcompress {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "kvcompress", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def first_question(session_id: str) -> str:
    """Return the question about the first fact that the session planted."""
    session = find_session(SESSIONS, session_id)
    fact = min(session.facts, key=lambda fact: fact["stated_message"])
    return str(session.messages[fact["question_message"]]["content"])


def demo(out: Path, session_id: str, tokens: int) -> None:
    """Run the whole path on one example session and print what came out."""
    out.mkdir(parents=True, exist_ok=True)
    raw, kvz, again = (str(out / name) for name in ("raw.safetensors", "session.kvz", "again.safetensors"))
    run("record", "--session", str(SESSIONS), "--id", session_id, "--tokens", str(tokens), "-o", raw, "--force")
    run("encode", raw, "-o", kvz, "--force")
    run("decode", kvz, "-o", again, "--force")
    question = first_question(session_id)
    resumed = run("resume", kvz, "--prompt", question, "--max-new-tokens", "48")
    whole = run("resume", raw, "--prompt", question, "--max-new-tokens", "48")
    report = run("report", kvz, "--session", str(SESSIONS), "--id", session_id, "-o", str(out))
    _print_table(report)
    print(f"\n{question}\nuninterrupted: {whole['text']}\nresumed:       {resumed['text']}")
    print(f"\n{report['verdict']}\nreport: {out / 'report.html'}")


def _print_table(report: dict[str, Any]) -> None:
    recall = report["questions"]
    rows = (
        ("raw 16-bit cache", f"{report['raw_bytes']:,} bytes"),
        ("file", f"{report['file_bytes']:,} bytes"),
        ("size ratio", f"{report['size_ratio']:.1f}"),
        ("KL of the next-token distribution", f"{report['kl_nats']:.5f} nats"),
        ("context worth", f"{report['context_worth_nats']:.3f} nats"),
        ("context lost", f"{report['context_lost']:.2%}"),
        ("top-1 agreement", f"{report['top1_agreement']:.2%}"),
        ("perplexity ratio", f"{report['ppl_ratio']:.4f}"),
        ("facts recalled (exact cache)", f"{recall['exact']} ({recall['exact_uncompressed']}) of {recall['asked']}"),
        ("restore", f"{report['restore_seconds'] * 1000:.0f} ms"),
        ("prefill again", f"{report['prefill_seconds'] * 1000:.0f} ms"),
    )
    print_table(("measure", "value"), rows, numbers=(1,), title=report["title"])
