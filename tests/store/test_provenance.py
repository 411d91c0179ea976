"""Provenance: each entry says where it comes from, and the record of it holds for somebody who has nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kvcompress.api.certificates import certificate_of
from kvcompress.codec.promise import Loss, Promise, Setting
from kvcompress.errors import InputError, KVCompressError
from kvcompress.format.header_fields import Header
from kvcompress.store.keys import StoreKey
from kvcompress.store.provenance import check_record, provenance, read_record
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.signing import Signer
from kvcompress.store.store import Store
from tests.store.examples import ids_of, snapshot_of

WHOLE = snapshot_of(ids_of(30))
SIGNER = Signer(b"s" * 32)


@pytest.fixture(params=["plain", "encrypted"])
def session(request: Any, place: Path) -> Any:
    key = StoreKey(b"k" * 32) if request.param == "encrypted" else None
    with Store(place, create=True, key=key, signer=SIGNER) as store:
        found = store.session("talk", create=True)
        for tokens in (7, 20):
            found.append(part_of(WHOLE, 0, tokens), lossless=True)
        found.append_tokens(WHOLE.token_ids)
        found.checkpoint("end")
        yield found


def test_an_entry_says_where_it_comes_from(session: StoredSession) -> None:
    record = provenance(session, 1)
    assert (record.session, record.number, record.kind, record.tokens) == ("talk", 1, "append", (7, 20))
    assert (record.codec, record.certificate) == ("lossless", {"basis": "lossless"})
    assert record.model["weights"] == "b" * 64
    assert record.parent == session.entry(0).segment
    assert record.segment == session.entry(1).segment
    assert record.previous == session.entry(0).digest
    assert record.producer.startswith("kvcompress")
    assert record.time > 1.7e9
    assert record.signer == SIGNER.public
    assert provenance(session, 0).parent == ""
    assert provenance(session, 2).certificate == {"basis": "recomputed"}
    marked = provenance(session)
    assert (marked.kind, marked.segment, dict(marked.model), marked.certificate) == ("checkpoint", "", {}, None)


def test_a_record_holds_by_itself_and_every_change_of_it_is_found(session: StoredSession, tmp_path: Path) -> None:
    for number in range(4):
        record = json.loads(json.dumps(provenance(session, number).to_json()))
        (tmp_path / "record.json").write_text(json.dumps(record))
        assert read_record(tmp_path / "record.json") == provenance(session, number)
        for name in set(record) - {"session"}:
            for other in (None, "x", 7, [0, 1], {"a": 1}, "00" * 32):
                changed = {**record, name: other}
                if changed == record:
                    continue
                with pytest.raises(KVCompressError):
                    check_record(changed)
        signature = copy.deepcopy(record)
        signature["context"]["signature"]["value"] = "00" * 64
        with pytest.raises(KVCompressError):
            check_record(signature)


def test_an_entry_without_a_signature_has_no_signer(place: Path) -> None:
    with Store(place, create=True) as store:
        session = store.session("talk", create=True)
        with pytest.raises(InputError, match="is empty"):
            provenance(session)
        session.append(WHOLE, lossless=True)
        assert provenance(session).signer is None
        assert check_record(provenance(session).to_json()).signer is None


def test_a_certificate_says_what_it_rests_on() -> None:
    loss = Loss(0.02, 0.01, 0)
    promise = Promise("high", Setting("latents", 100), 20, 512, 64, loss, loss, loss)

    def header(codec: str, **settings: Any) -> Header:
        return Header(codec, "f" * 64, {}, "", 1, 1, settings, (), 0)

    layers = {"rate": 100, "shapes": [[1, 1, 4, 4]], "exact": [0, 0]}
    measured = certificate_of(header("tinyvae", quality="high", **layers), {"high": promise})
    assert measured is not None
    assert (measured["basis"], measured["max_kl_nats"], measured["sessions"]) == ("codec", 0.02, 20)
    assert measured["min_top1_agreement"] == 0.98
    own = {"kl_nats": 0.001, "max_kl_nats": 0.002, "tail_tokens": 64}
    assert certificate_of(header("tinyvae", certificate=own, **layers), {}) == {"basis": "session", **own}
    assert certificate_of(header("tinyvae", quality="high", unlike=True, **layers), {"high": promise}) is None
    assert certificate_of(header("unknown"), {}) is None
    for start, promised in ((0, True), (40, False)):
        segment = {"start": start, "parent": "a" * 64 if start else ""}
        found = certificate_of(header("tinyvae", quality="high", segment=segment, **layers), {"high": promise})
        assert (found is not None) == promised


def test_signing_keys_are_kept_for_their_owner(tmp_path: Path) -> None:
    signer = Signer.generate()
    signer.save(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert Signer.from_file(tmp_path / "key.pem").public == signer.public
    (tmp_path / "other").write_text("no key")
    with pytest.raises(InputError, match="no private key"):
        Signer.from_file(tmp_path / "other")
