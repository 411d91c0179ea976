"""What a second reader, written from docs/format.md alone, finds in files is what the package finds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvcompress.codec.exact_tokens import with_exact
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.format.container import from_bytes, load, to_bytes
from kvcompress.format.origin import origin_of_json
from kvcompress.format.strict_json import canonical_json
from kvcompress.format.token_ids import unpack_tokens
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot
from kvcompress.store.collect import _leave_tokens
from kvcompress.store.portable import export_session
from kvcompress.store.seal import seal
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.format import second_reader as reader
from tests.format import second_store_reader as stores
from tests.format.examples import make_snapshot
from tests.store.examples import ids_of, snapshot_of

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
FILES = sorted(path.name for path in GOLDEN.glob("*.kvz"))
PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def bits(tensor: torch.Tensor) -> Any:
    wide = torch.int32 if tensor.element_size() == 4 else torch.int16
    return tensor.contiguous().view(wide).numpy()


def dictionary() -> bytes:
    config = json.loads((CHECKPOINTS / "reference-lm-tinyvae" / "config.json").read_bytes())
    return canonical_json(config["origin"])


def same_bits(found: list[tuple[Any, Any]], layers: Any) -> None:
    for tensors, layer in zip(found, layers, strict=True):
        for mine, theirs in zip(tensors, (layer.keys, layer.values), strict=True):
            assert np.array_equal(mine.view(bits(theirs).dtype), bits(theirs))


# -- files


def test_it_imports_nothing_of_the_package() -> None:
    for module in (reader, stores):
        lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if "import" in line and ("kvcompress" in line or "tinyvae" in line)]


def test_the_dictionary_is_the_one_of_the_page() -> None:
    assert len(reader.DICTIONARY) == 754
    assert hashlib.sha256(reader.DICTIONARY).hexdigest() in PAGE


@pytest.mark.parametrize("name", FILES)
def test_golden_files_hold_the_same(name: str) -> None:
    mine, theirs = reader.read_kvz((GOLDEN / name).read_bytes()), load(GOLDEN / name)
    assert mine.sections == dict(theirs.sections)
    told = {field: getattr(theirs, field) for field in reader.FIELDS - {"sections"}}
    assert {field: mine.header[field] for field in told} == told
    assert np.array_equal(reader.token_ids(mine), unpack_tokens(theirs.sections["tokens"], theirs.tokens).numpy())
    origin = reader.origin_of(mine, dictionary() if theirs.codec == "tinyvae" else None)
    assert canonical_json(origin_of_json(origin).to_json()) == canonical_json(origin)
    held = reader.positions_of(mine, len(origin["layer_kinds"]))
    if theirs.codec == "lossless":
        decoded = LosslessCodec().decode(theirs)
        assert held == [layer.positions.tolist() for layer in decoded.layers]
        same_bits(reader.lossless(mine, origin), decoded.layers)


def test_a_changed_byte_is_refused() -> None:
    whole = (GOLDEN / "lossless.kvz").read_bytes()
    for index in range(len(whole)):
        with pytest.raises(reader.Refused):
            reader.read_kvz(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
    for changed in (whole[:-1], whole + b"\0"):
        with pytest.raises(reader.Refused):
            reader.read_kvz(changed)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 37])
def test_lossless_files_hold_the_same_bits(dtype: str, tokens: int) -> None:
    snapshot = make_snapshot(tokens, dtype)
    mine = reader.read_kvz(to_bytes(LosslessCodec().encode(snapshot)))
    assert np.array_equal(reader.token_ids(mine), snapshot.token_ids.numpy())
    origin = reader.origin_of(mine)
    assert reader.positions_of(mine, len(snapshot.layers)) == [layer.positions.tolist() for layer in snapshot.layers]
    same_bits(reader.lossless(mine, origin), snapshot.layers)


def tame(snapshot: KVSnapshot) -> KVSnapshot:
    """The same places with numbers of ordinary size: eight bits have one scale for all tokens."""
    from dataclasses import replace

    made = torch.Generator().manual_seed(1)
    layers = []
    for layer in snapshot.layers:
        keys, values = (torch.randn(part.shape, generator=made).to(part.dtype) for part in (layer.keys, layer.values))
        layers.append(replace(layer, keys=keys, values=values))
    return replace(snapshot, layers=tuple(layers))


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_eight_bits_mean_the_same_numbers(dtype: str) -> None:
    snapshot = tame(make_snapshot(37, dtype))
    encoded = Int8Codec().encode(snapshot)
    chosen = torch.zeros(37, dtype=torch.bool)
    chosen[[5, 30]] = True
    encoded = from_bytes(to_bytes(with_exact(encoded, snapshot, chosen)))
    mine = reader.read_kvz(to_bytes(encoded))
    origin = reader.origin_of(mine)
    decoded = Int8Codec().decode(Int8Codec().encode(snapshot))
    for tensors, layer in zip(reader.int8(mine, origin), decoded.layers, strict=True):
        for numbers, theirs in zip(tensors, (layer.keys, layer.values), strict=True):
            assert torch.equal(torch.from_numpy(numbers.copy()).to(CACHE_DTYPES[dtype]), theirs)
    held, exact = reader.exact(mine, origin)
    assert held == [[5, 30]] * len(snapshot.layers)
    for tensors, layer in zip(exact, snapshot.layers, strict=True):
        index = torch.searchsorted(layer.positions, torch.tensor([5, 30]))
        for found, theirs in zip(tensors, (layer.keys, layer.values), strict=True):
            assert np.array_equal(found.view(bits(theirs).dtype), bits(theirs[:, index]))


# -- stores


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two sessions with all kinds of entries, one turn collected and one with its token ids alone."""
    whole = snapshot_of(ids_of(60), size=64)
    found = Store(tmp_path / "store", create=True)
    talk = found.session("talk: naïve \U0001f600", create=True)
    for tokens in (7, 20, 40):
        talk.append(part_of(whole, 0, tokens), lossless=True, said={"why": "a\u2028\x7f\t", "small": 1e-7})
    talk.checkpoint("here")
    talk.append(part_of(whole, 0, 50), lossless=True)
    talk.pop()
    branch = talk.branch("branch", 1)
    branch.append_tokens(whole.token_ids[:33])
    branch.append(whole, lossless=True)
    talk.rewind("here")
    talk.checkpoint("gone")
    talk.forget("gone")
    assert _leave_tokens(found, bytes.fromhex(talk.entry(2).segment))
    found.gc(grace_seconds=0)
    return found


def same_log(mine: stores.SessionLog, theirs: StoredSession) -> None:
    found = [(row.segment.hex(), row.says, row.anchor.hex(), row.digest.hex()) for row in mine.rows]
    assert found == [(row.segment, row.context, row.anchor, row.digest) for row in theirs]


def test_a_store_holds_the_same(store: Store) -> None:
    store.close()
    logs = stores.read_store(store.path)
    with Store(store.path) as again:
        assert set(logs) == {info.name for info in again.list()}
        for session in again:
            mine = logs[session.name]
            same_log(mine, session)
            assert mine.names == session.names()
            assert session.verify().ok
            assert canonical_json(mine.origin) == canonical_json(again.origin(row_of(session)).to_json())
            assert [bool(row.held) for row in mine.rows if row.segment] == [
                session.name == "branch" or row.number != 4 for row in session if row.segment
            ]


def row_of(session: StoredSession) -> str:
    with session.store.database.read() as tables:
        return str(tables.execute("SELECT origin FROM sessions WHERE id = ?", (session.id,)).fetchone()[0])


@pytest.mark.parametrize("name", ["talk: naïve \U0001f600", "branch"])
def test_portable_files_and_seals_hold_the_same(store: Store, tmp_path: Path, name: str) -> None:
    session = store.session(name)
    export_session(session, tmp_path / "s.kvs")
    logs = stores.read_portable(tmp_path / "s.kvs")
    assert logs[-1].name == name
    same_log(logs[-1], session)
    made = tmp_path / "seal.json"
    seal(session).save(made)
    stores.check_seal(made.read_bytes(), logs[-1].rows)
    changed = json.loads(made.read_bytes())
    for field, value in (("anchor", "0" * 16), ("fnv1a64", "0" * 16), ("codec", "0" * 64), ("count", 1)):
        with pytest.raises(reader.Refused):
            stores.check_seal(json.dumps(changed | {field: value}).encode(), logs[-1].rows)


def test_encrypted_files_hold_the_same(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra store)")
    from kvcompress.store.keys import StoreKey

    key, file = StoreKey(b"s" * 32), tmp_path / "s.kvs"
    with Store(tmp_path / "secret", create=True, key=key) as secret:
        talk = secret.session("talk", create=True)
        for tokens in (7, 20):
            talk.append(part_of(snapshot_of(ids_of(20)), 0, tokens), lossless=True)
        branch = talk.branch("branch")
        branch.append_tokens(torch.cat([ids_of(20), ids_of(10, seed=2)]))
        export_session(branch, file)
        logs = stores.read_portable(file, key.secret)
        assert [log.name for log in logs] == ["talk", "branch"]
        same_log(logs[1], branch)
        assert all(row.says["salt"] for log in logs for row in log.rows)
    with pytest.raises(reader.Refused, match="wrong key"):
        stores.read_portable(file, b"t" * 32)


def test_the_golden_encrypted_file_holds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra store)")
    from kvcompress.store.keys import StoreKey
    from kvcompress.store.portable import import_session
    from tests.format.make_golden import GOLDEN_KEY

    logs = stores.read_portable(GOLDEN / "secret.kvs", GOLDEN_KEY)
    with Store(tmp_path / "other", create=True, key=StoreKey(GOLDEN_KEY)) as other:
        import_session(other, GOLDEN / "secret.kvs")
        same_log(logs[-1], other.session("branch"))
        assert other.session("branch").verify().ok


def test_golden_sessions_hold_the_same(tmp_path: Path) -> None:
    from kvcompress.store.portable import import_session
    from kvcompress.store.seal import parse_seal, verify_seal

    logs, sealed = stores.read_portable(GOLDEN / "session.kvs"), (GOLDEN / "seal.json").read_bytes()
    stores.check_seal(sealed, logs[-1].rows)
    with Store(tmp_path / "other", create=True) as other:
        import_session(other, GOLDEN / "session.kvs")
        session = other.session(logs[-1].name)
        same_log(logs[-1], session)
        assert verify_seal(session, parse_seal(sealed)).ok


CHANGES: dict[str, str] = {
    "a context": "UPDATE entries SET context = replace(context, 'kvcompress', 'kvcompresS')",
    "a kind": "UPDATE entries SET kind = 'tokens' WHERE kind = 'append'",
    "a place": 'UPDATE entries SET "end" = "end" + 1',
    "a name": "UPDATE names SET number = 0",
    "an anchor": "UPDATE sessions SET anchor = zeroblob(8)",
    "an origin": "UPDATE origins SET origin = replace(origin, 'tiny', 'tinY')",
    "a removal": "DELETE FROM entries WHERE id & 4294967295 = 2",
    "an application": "PRAGMA application_id = 7",
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_store_is_refused(store: Store, tmp_path: Path, what: str) -> None:
    import sqlite3

    store.close()
    shutil.copytree(store.path, tmp_path / "changed")
    with sqlite3.connect(tmp_path / "changed" / "store.db") as tables:
        tables.execute(CHANGES[what])
    tables.close()
    with pytest.raises(reader.Refused):
        stores.read_store(tmp_path / "changed")


def test_a_changed_segment_is_refused(store: Store) -> None:
    store.close()
    path = next(path for path in sorted((store.path / "segments").rglob("*")) if path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(reader.Refused):
        stores.read_store(store.path)


NUMBERS: list[Callable[[], float]] = [lambda: 1e-5, lambda: 1e16, lambda: 0.1 + 0.2, lambda: 1e22, lambda: 123456789.0]


@pytest.mark.parametrize("made", NUMBERS)
def test_canonical_json_is_written_alike(made: Callable[[], float]) -> None:
    value = {"b": [made(), -made(), 3], "a": 'é"\\\x1f\n\u2028', "": None, "\uffff": True, "\U00010000": 0}
    assert reader.canonical(value) == canonical_json(value)
    assert reader.parse(canonical_json(value)) == value
