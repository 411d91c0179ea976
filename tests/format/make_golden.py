"""Write the golden files again, after a change of the format or of the bundled codec.

`python -m tests.format.make_golden`
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kvcompress.codec.directory import load_codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.residual import Residual
from kvcompress.data.sessions import find_session, session_token_ids
from kvcompress.format.ans import decode_symbols
from kvcompress.format.container import save
from kvcompress.format.raw_snapshot import save_raw
from kvcompress.hf import capture, load_model
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.prune.evidence.file import save_evidence
from kvcompress.store.keys import StoreKey
from kvcompress.store.portable import export_session
from kvcompress.store.seal import seal
from kvcompress.store.segment import part_of
from kvcompress.store.store import Store
from tests.format.examples import make_evidence, make_snapshot
from tests.store.examples import ids_of, snapshot_of

GOLDEN = Path(__file__).parent / "golden"
SESSIONS = Path(__file__).parents[2] / "examples" / "sessions.jsonl"
TINYVAE_TOKENS = 16
GOLDEN_KEY = b"golden".ljust(32)
"""Of the encrypted portable file."""


def digest_of(symbols: Tensor) -> str:
    """Return the SHA-256 of symbols, int32 little-endian, row by row."""
    return hashlib.sha256(symbols.numpy().astype("<i4").tobytes()).hexdigest()


def write_tinyvae() -> None:
    """Write a short session of the bundled model: with and without residual, decoded cache, digests of symbols."""
    model, tokenizer = load_model(find_checkpoint("reference-lm"))
    ids = session_token_ids(find_session(SESSIONS, None), tokenizer)[:TINYVAE_TOKENS]
    codec, snapshot = load_codec(), capture(model, ids, tokenizer=tokenizer)
    qp = codec.qp_of("transparent")
    encoded = codec.encode(snapshot, qp)
    vae = codec.vae(0)
    levels = vae.levels(snapshot.token_ids, codec.qps(0, snapshot.token_ids, qp)).numpy()
    symbols = decode_symbols(encoded.sections["latents.0"], levels, codec.bank)
    digest = digest_of(torch.from_numpy(symbols))
    save(GOLDEN / "tinyvae.kvz", encoded, force=True)
    save_raw(GOLDEN / "tinyvae.safetensors", codec.decode(encoded), force=True)
    with_residual = codec.encode(snapshot, qp, residual_qp=qp)
    save(GOLDEN / "residual.kvz", with_residual, force=True)
    residual = Residual.from_bytes(with_residual.sections["residual.0"], len(ids), vae.config.channels, codec.bank)
    known = {"shape": list(symbols.shape), "symbols_sha256": digest, "residual_sha256": digest_of(residual.symbols)}
    (GOLDEN / "tinyvae.json").write_text(json.dumps(known) + "\n")


def write_session() -> None:
    """Write a stored session as a portable file, plain with its seal and encrypted."""
    for name, key in (("session", None), ("secret", StoreKey(GOLDEN_KEY))):
        whole = snapshot_of(ids_of(40), size=16)
        with TemporaryDirectory() as folder, Store(Path(folder) / "store", create=True, key=key) as store:
            talk = store.session("talk", create=True)
            for tokens in (7, 20):
                talk.append(part_of(whole, 0, tokens), lossless=True)
            talk.checkpoint("here")
            branch = talk.branch("branch")
            branch.append_tokens(whole.token_ids[:30])
            branch.append(whole, lossless=True)
            export_session(branch, GOLDEN / f"{name}.kvs", force=True)
            if key is None:
                seal(branch).save(GOLDEN / "seal.json", force=True)


if __name__ == "__main__":
    save(GOLDEN / "lossless.kvz", LosslessCodec().encode(make_snapshot()), force=True)
    save_raw(GOLDEN / "raw.safetensors", make_snapshot(), force=True)
    save_evidence(GOLDEN / "evidence.safetensors", make_evidence(), "a codec", force=True)
    write_tinyvae()
    write_session()
