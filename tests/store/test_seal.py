"""Seals: a log that was rewritten consistently is found, and so is every change of the seal itself."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.keyring import rekey
from kvcompress.store.keys import StoreKey
from kvcompress.store.log import Link
from kvcompress.store.seal import Seal, fnv1a64, parse_seal, seal, verify_seal
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.signing import Signer
from kvcompress.store.store import Store
from tests.store.examples import ids_of, snapshot_of

WHOLE = snapshot_of(ids_of(30))
SIGNER, OTHER = Signer(b"s" * 32), Signer(b"o" * 32)


def filled(store: Store) -> StoredSession:
    session = store.session("talk", create=True)
    for tokens in (7, 20, 30):
        session.append(part_of(WHOLE, 0, tokens), lossless=True)
    session.checkpoint("end")
    return session


@pytest.fixture
def session(store: Store) -> StoredSession:
    return filled(store)


def test_a_seal_holds_while_the_log_grows(session: StoredSession, tmp_path: Path) -> None:
    made = seal(session, SIGNER)
    made.save(tmp_path / "seal.json")
    assert Seal.load(tmp_path / "seal.json") == made
    assert (made.count, made.digest, made.anchor) == (4, session.entry(3).digest, session.entry(3).anchor)
    assert made.signer == SIGNER.public
    session.pop()
    session.append(WHOLE, lossless=True)
    assert verify_seal(session, made, [SIGNER.public]).ok
    assert verify_seal(session, made).entries == 6
    with pytest.raises(InputError, match="exists"):
        made.save(tmp_path / "seal.json")


def test_fnv_is_the_published_function_over_the_stated_bytes(session: StoredSession) -> None:
    assert [fnv1a64(text) for text in (b"", b"a", b"foobar")] == [
        "cbf29ce484222325",
        "af63dc4c8601ec8c",
        "85944171f73967e8",
    ]
    log = b"".join(
        len(part).to_bytes(8, "little") + part
        for entry in session
        for part in (bytes.fromhex(entry.segment), canonical_json(entry.context))
    )
    made = seal(session)
    assert (made.log_bytes, made.fnv1a64) == ((0, len(log)), fnv1a64(log))


def test_of_a_long_log_the_end_is_hashed(session: StoredSession, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seal(session)
    monkeypatch.setattr("kvcompress.store.seal.MOST_FNV_BYTES", 50)
    made = seal(session)
    assert made.log_bytes == (whole.log_bytes[1] - 50, whole.log_bytes[1])
    assert verify_seal(session, made).ok


def rewritten(session: StoredSession, keep: int, change: Any = None) -> None:
    """Cut the log and change an entry, as somebody does who can compute the chain anew."""
    with sqlite3.connect(session.store.database.path) as tables:
        link, entries = Link(), list(session)[:keep]
        tables.execute("DELETE FROM entries WHERE id > ?", (entries[-1].id,))
        tables.execute("DELETE FROM names WHERE number >= ?", (keep,))
        for entry in entries:
            context = {**entry.context, **(change or {} if entry.number == 1 else {})}
            text, segment = canonical_json(context), bytes.fromhex(entry.segment)
            link = link.then(segment, text)
            values = (text.decode(), link.anchor, link.digest, entry.id)
            tables.execute("UPDATE entries SET context = ?, anchor = ?, digest = ? WHERE id = ?", values)
        tables.execute("UPDATE sessions SET entries = ?, anchor = ?, digest = ?", (keep, link.anchor, link.digest))
    tables.close()


def test_a_log_that_was_cut_off_and_made_consistent_is_found(session: StoredSession) -> None:
    made = seal(session)
    rewritten(session, 2)
    assert session.verify().ok
    found = verify_seal(session, made)
    assert (found.kind, found.bad) == ("truncation", 2)


def test_a_log_that_was_rewritten_consistently_is_found(session: StoredSession) -> None:
    made = seal(session)
    rewritten(session, 4, {"time": 7.0})
    assert session.verify().ok
    assert verify_seal(session, made).kind == "edit"


def test_what_the_chain_finds_is_told_as_the_chain_tells_it(session: StoredSession) -> None:
    made = seal(session)
    with sqlite3.connect(session.store.database.path) as tables:
        tables.execute("DELETE FROM entries WHERE id = ?", (session.entry(1).id,))
    tables.close()
    found = verify_seal(session, made)
    assert (found.kind, found.bad) == ("removal", 1)
    with pytest.raises(InputError, match="not in order: entry 1"):
        seal(session)


def test_no_field_of_a_seal_can_be_changed(session: StoredSession) -> None:
    for made in (seal(session), seal(session, SIGNER)):
        held = json.loads(canonical_json(made.to_json()))
        for name, value in held.items():
            if name == "created" and made.signature is None:
                continue  # nothing vouches for it there
            if name == "signature":
                changes: list[Any] = [
                    {**value, "value": "00" * 64},
                    OTHER.sign(b"kvcompress entry 1\n", made.message()),
                ]
            elif isinstance(value, str):
                changes = [("0" if value[0] != "0" else "1") + value[1:], "", None]
            elif isinstance(value, list):
                changes = [[value[0] + 1, value[1]], [value[0], value[1] - 1], [0, 1 << 40], []]
            else:
                changes = [value + 1, value - 1, -1]
            for change in changes:
                try:
                    changed = parse_seal(canonical_json({**held, name: change}))
                except KVCompressError:
                    continue
                assert not verify_seal(session, changed).ok, (name, change)


def test_whose_seal_it_is_can_be_asked(session: StoredSession) -> None:
    unsigned, theirs = seal(session), seal(session, OTHER)
    assert verify_seal(session, unsigned).ok
    assert verify_seal(session, theirs).ok
    assert "not signed" in verify_seal(session, unsigned, [SIGNER.public]).what
    assert "none of those" in verify_seal(session, theirs, [SIGNER.public]).what
    broken = replace(theirs, signature={"key": SIGNER.public, "value": "00" * 64})
    assert verify_seal(session, broken).kind == "signature"


def test_an_empty_log_is_not_sealed_and_what_is_none_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="is empty"):
        seal(store.session("empty", create=True))
    for data in (b"", b"{}", b"[]", b"x" * (1 << 17), b'{"format":"kvcompress-seal-2"}'):
        with pytest.raises(FormatError):
            parse_seal(data)


def test_a_seal_survives_another_key(place: Path) -> None:
    with Store(place, create=True, key=StoreKey(b"k" * 32)) as store:
        session = filled(store)
        made = seal(session, SIGNER)
        rekey(store, StoreKey(b"o" * 32))
        assert verify_seal(store.session("talk"), made, [SIGNER.public]).ok


@pytest.mark.parametrize("kind", ["MC4CAQAwBQYDK2VvBCIEIA", "MC4CAQAwBQYDK2VuBCIEIA", "MEcCAQAwBQYDK2VxBDsEOQ"])
def test_a_key_of_another_kind_or_size_is_refused(tmp_path: Path, kind: str) -> None:
    """The library calls a length that does not fit its kind an internal error."""
    file = tmp_path / "key.pem"
    file.write_text(
        f"-----BEGIN PRIVATE KEY-----\n{kind}ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g\n-----END PRIVATE KEY-----\n"
    )
    with pytest.raises(InputError, match="private key"):
        Signer.from_file(file)
