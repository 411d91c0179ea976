"""The work of one condition, in a process of its own: encode every session, or decode every file.

`python -m kvcompress_eval.portability.worker --task encode|decode --condition JSON --job FILE --out DIRECTORY`

The job is a JSON file that all processes share; each writes `result.json` and its tensors into a directory of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvcompress.errors import KVCompressError
from kvcompress_eval.portability.conditions import REFERENCE, Condition, apply

Row = dict[str, Any]
RESULT = "result.json"


class Bench:
    """Model and codec of a job, loaded in a condition.

    Args:
        job: What all processes share.
        condition: How this one computes.
        out: Directory of its results.
    """

    def __init__(self, job: Row, condition: Condition, out: Path) -> None:
        from kvcompress.codec.directory import load_codec
        from kvcompress.hf import load_model

        self.job, self.out, self.is_reference = job, out, condition == REFERENCE
        loaded: Any = load_model(job["model"], condition.dtype)
        self.model, self.tokenizer = loaded
        self.model.to(condition.device)
        self.codec = load_codec(job["codec"])

    def encode(self) -> Row:
        """Record and encode every session, then encode the snapshot that all conditions share."""
        return {"sessions": [self._encode(index, row) for index, row in enumerate(self.job["sessions"])]}

    def _encode(self, index: int, session: Row) -> Row:
        """Return digests of one session; the reference writes the shared snapshot first."""
        own, refused = refusable(lambda: self._record(index, session["stored"]))
        return {"own": own, "refused": refused} | self._encode_shared(index)

    def _record(self, index: int, token_ids: list[int]) -> Row:
        from kvcompress.codec.quality import encode_at_quality
        from kvcompress.format.container import save
        from kvcompress.format.raw_snapshot import save_raw
        from kvcompress.hf import capture
        from kvcompress_eval.portability.symbols import digest, quantised

        snapshot = capture(self.model, token_ids, tokenizer=self.tokenizer)
        if self.is_reference:
            save_raw(shared_snapshot(self.job, index), snapshot)
        path = self.out / f"{index}.kvz"
        save(path, encode_at_quality(self.codec, snapshot, self.job["quality"]))
        symbols, _ = quantised(self.codec, snapshot, self.codec.qp_of(self.job["quality"]))
        tensors = [tensor for layer in snapshot.layers for tensor in (layer.keys, layer.values)]
        return {
            "path": str(path),
            "file_bytes": path.stat().st_size,
            "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "symbols_sha256": digest(symbols),
            "cache_sha256": cache_digest(tensors),
        }

    def _encode_shared(self, index: int) -> Row:
        from safetensors.torch import save_file

        from kvcompress.codec.quality import encode_at_quality
        from kvcompress.format.container import to_bytes
        from kvcompress.format.raw_snapshot import load_raw
        from kvcompress_eval.portability.symbols import quantised

        path = shared_snapshot(self.job, index)
        if not path.is_file():  # the reference could not record it
            return {"shared_sha256": None}
        snapshot = load_raw(path)
        data = to_bytes(encode_at_quality(self.codec, snapshot, self.job["quality"]))
        symbols, latents = quantised(self.codec, snapshot, self.codec.qp_of(self.job["quality"]))
        named = {f"symbols.{group}": part.contiguous() for group, part in enumerate(symbols)}
        named |= {f"latents.{group}": part.contiguous() for group, part in enumerate(latents)}
        save_file(named, self.out / f"{index}.shared.safetensors")
        return {"shared_sha256": hashlib.sha256(data).hexdigest()}

    def decode(self) -> Row:
        """Decode every file, resume from it, and decode the golden file if there is one."""
        files = [self._decode(number, row) for number, row in enumerate(self.job["files"])]
        golden = self.job["golden"]
        found, refused = (None, None) if golden is None else refusable(lambda: self._read(Path(golden), "golden"))
        return {"files": files, "golden": {"symbols_sha256": found, "refused": refused}}

    def _decode(self, number: int, file: Row) -> Row:
        digest, unreadable = refusable(lambda: self._read(Path(file["path"]), str(number)))
        if unreadable:
            return {"symbols_sha256": None, "unreadable": unreadable, "greedy": None, "refused": None}
        session = self.job["sessions"][file["session"]]
        tokens, refused = refusable(lambda: self._resume(number, session["following"]))
        return {"symbols_sha256": digest, "unreadable": None, "greedy": tokens, "refused": refused}

    def _read(self, path: Path, name: str) -> str:
        """Decode a file, keep its cache under a name and return the digest of its symbols."""
        from kvcompress.format.container import load
        from kvcompress.format.raw_snapshot import save_raw
        from kvcompress_eval.portability.symbols import digest, read_back

        encoded = load(path)
        save_raw(self.out / f"{name}.safetensors", self.codec.decode(encoded))
        return digest(read_back(self.codec, encoded))

    def _resume(self, number: int, following: list[int]) -> list[int]:
        """Resume from the decoded cache: keep the logits over what really followed, return what the model says."""
        import torch
        from safetensors.torch import save_file

        from kvcompress.format.raw_snapshot import load_raw
        from kvcompress.hf import restore
        from kvcompress.hf.generation import generate_from
        from kvcompress.metrics.fidelity import continuation_logits

        snapshot = load_raw(self.out / f"{number}.safetensors")
        cache = restore(snapshot, self.model, tokenizer=self.tokenizer)
        logits = continuation_logits(self.model, cache, torch.tensor(following), snapshot.tokens)
        save_file({"logits": logits.float().cpu().contiguous()}, self.out / f"{number}.logits.safetensors")
        greedy = self.job["greedy_tokens"]
        return generate_from(
            self.model, cache, following[:1], next_position=snapshot.tokens, max_new_tokens=greedy, stop_ids=()
        )


def refusable(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what a call returns, or None and why it refused.

    Ours refuse mismatches; torch refuses, by a RuntimeError, what it cannot do in a condition.
    """
    try:
        return call(), None
    except (KVCompressError, RuntimeError) as error:
        return None, " ".join(str(error).split())


def cache_digest(tensors: list[Any]) -> str:
    """Return the sha256 over the values of tensors, as float32, whatever they are stored in."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.float().contiguous().numpy().astype("<f4").tobytes())
    return found.hexdigest()


def shared_snapshot(job: Row, index: int) -> Path:
    """Return where the reference's snapshot of a session lies."""
    return Path(job["shared"]) / f"{index}.safetensors"


def main(arguments: list[str] | None = None) -> None:
    """Do one task in one condition and write its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("encode", "decode"), required=True)
    parser.add_argument("--condition", type=Condition.from_text, required=True)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    in_force = apply(given.condition)  # before anything is computed or even loaded
    job: Row = json.loads(given.job.read_text())
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(job, given.condition, given.out)
    result = bench.encode() if given.task == "encode" else bench.decode()
    (given.out / RESULT).write_text(json.dumps({"in_force": in_force} | result))


if __name__ == "__main__":
    try:
        main()
    except KVCompressError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
