"""Does the model use its context? Context worth, and exact answers to planted facts by distance."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from kvcompress.data.harvest import tokenized_sessions
from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.hf import capture, load_model, restore
from kvcompress.metrics.fidelity import context_worth_nats
from kvcompress.metrics.recall import Question, answer, is_exact, turn_ids
from train.lm.facts import ask, invent_fact, state

CONTINUATION_TOKENS = 256
DISTANCES_TOKENS = (200, 500, 1000, 1400, 1800)


def measure_model(path: Path, sessions: Path, most_sessions: int, seed: int) -> dict[str, Any]:
    """Return context worth in nats a token and the share of exact answers at each distance.

    Context worth is the mean over sessions, on their last 256 tokens. For recall three facts are stated
    at the start of each session, its turns follow, and one fact is asked at each distance.
    """
    model, tokenizer = load_model(path)
    rows = tokenized_sessions(model, tokenizer, sessions)[:most_sessions]
    worth = []
    for _, ids in rows:
        cut = len(ids) - CONTINUATION_TOKENS
        if cut >= CONTINUATION_TOKENS:
            worth.append(context_worth_nats(model, ids[:cut], ids[cut:]))
    rng = random.Random(seed)
    recall = {str(d): _recall_at(model, tokenizer, [s for s, _ in rows], d, rng) for d in DISTANCES_TOKENS}
    far = [value for distance, value in recall.items() if int(distance) >= 1000]
    asked = sum(value["asked"] for value in far)
    return {
        "model": path.name,
        "sessions": len(worth),
        "context_worth_nats": sum(worth) / max(1, len(worth)),
        "recall_by_distance_tokens": recall,
        "recall_at_1000_tokens_and_more": sum(value["exact"] for value in far) / max(1, asked),
    }


def _recall_at(
    model: Any, tokenizer: Any, sessions: list[Session], distance_tokens: int, rng: random.Random
) -> dict[str, int]:
    """Ask every fact of every session once, `distance_tokens` after the facts were stated."""
    asked = exact = 0
    for _session in sessions:
        taken: set[str] = set()
        facts = [invent_fact(rng, taken) for _ in range(3)]
        opening = state(facts, rng)
        start = len(session_token_ids(Session("", opening), tokenizer))
        talk = [m for other in rng.sample(sessions, len(sessions)) for m in other.messages]
        talk = talk[: distance_tokens // 2]  # a turn has two tokens or more
        ids = torch.tensor(session_token_ids(Session("", opening + talk), tokenizer)[: start + distance_tokens])
        cache = restore(capture(model, ids), model)
        for fact in facts:
            text = ask(fact, rng)[0]["content"]
            question = Question(tuple(turn_ids(tokenizer, text, ids.tolist())), fact.value, distance_tokens)
            asked += 1
            exact += is_exact(answer(model, cache, tokenizer, question, len(ids)), fact.value)
    return {"asked": asked, "exact": exact}
