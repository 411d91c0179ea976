"""Trust policies: what they do not accept is refused, and nothing of it decoded."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcompress.api.codecs import LoadedCodecs
from kvcompress.errors import FormatError, IntegrityError, KVCompressError, TrustError
from kvcompress.format.strict_json import canonical_json
from kvcompress.store.log import Link
from kvcompress.store.policy import Policy
from kvcompress.store.segment import part_of
from kvcompress.store.signing import Signer
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

WHOLE = snapshot_of(ids_of(30))
SIGNER, OTHER = Signer(b"s" * 32), Signer(b"o" * 32)


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store(place, create=True, signer=SIGNER) as found:
        session = found.session("talk", create=True)
        for tokens in (7, 20, 30):
            session.append(part_of(WHOLE, 0, tokens), lossless=True)
        session.checkpoint("end")
        yield found


def refusal(store: Store, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a policy says of the session; no codec may have been asked meanwhile."""

    def never(self: LoadedCodecs, *given: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(LoadedCodecs, "decode", never)
    store.policy = policy
    with pytest.raises(KVCompressError) as failure:
        store.session("talk").snapshot()
    with pytest.raises(KVCompressError):
        store.session("talk").token_ids()
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_what_is_trusted_is_given(store: Store) -> None:
    signers = frozenset({SIGNER.public, OTHER.public})
    store.policy = Policy(signers, frozenset({"lossless"}), 0.01, 0.01, 0.97)
    assert same(store.session("talk").snapshot(), WHOLE)
    assert same(store.session("talk").snapshot(1), part_of(WHOLE, 0, 20))
    branch = store.session("talk").branch("other", at=1)
    assert same(branch.snapshot(), part_of(WHOLE, 0, 20))
    branch.rewind(0)
    assert branch.snapshot().tokens == 20
    store.session("talk").rewind(turns=3)
    store.session("talk").append(WHOLE, lossless=True)
    assert same(store.session("talk").snapshot(), WHOLE)


def test_signatures_of_others_and_none_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(store, Policy(signers=frozenset({OTHER.public})), monkeypatch)
    assert f"signed by {SIGNER.public[:16]}" in told
    store.signer = None
    store.session("talk").checkpoint("unsigned")
    assert "entry 4 is not signed" in refusal(store, Policy(signers=frozenset({SIGNER.public})), monkeypatch)


def test_codecs_that_are_not_named_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "coded by lossless" in refusal(store, Policy(codecs=frozenset({"int8", "0" * 16})), monkeypatch)


def certified(store: Store, certificate: object, number: int = 1) -> None:
    """Let an entry say something else of its fidelity, the chain and its signature made anew."""
    session = store.session("talk")
    with sqlite3.connect(store.database.path) as tables:
        link = Link()
        for entry in list(session):
            context = {name: value for name, value in entry.context.items() if name != "signature"}
            if entry.number == number:
                context |= {"certificate": certificate}
            segment = bytes.fromhex(entry.segment)
            context["signature"] = SIGNER.entry(link.digest, segment, context)
            text = canonical_json(context)
            link = link.then(segment, text)
            values = (text.decode(), link.anchor, link.digest, entry.id)
            tables.execute("UPDATE entries SET context = ?, anchor = ?, digest = ? WHERE id = ?", values)
        tables.execute("UPDATE sessions SET anchor = ?, digest = ?", (link.anchor, link.digest))
    tables.close()
    assert session.verify().ok


def test_less_fidelity_than_asked_for_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"basis": "codec", "kl_nats": 0.004, "max_kl_nats": 0.02, "min_top1_agreement": 0.94}
    certified(store, measured)
    signers = frozenset({SIGNER.public})
    told = refusal(store, Policy(signers, max_kl_nats=0.01), monkeypatch)
    assert "entry 1 is certified with max_kl_nats of 0.02, the trust policy asks for 0.01" in told
    assert "min_top1_agreement" in refusal(store, Policy(signers, min_top1_agreement=0.97), monkeypatch)
    assert "max_context_lost of nothing" in refusal(store, Policy(max_context_lost=1.0), monkeypatch)
    monkeypatch.undo()
    store.policy = Policy(signers, None, 0.02, None, 0.94)
    assert same(store.session("talk").snapshot(), WHOLE)
    certified(store, None)
    assert "never measured" in refusal(store, Policy(max_kl_nats=9.0), monkeypatch)


@pytest.mark.parametrize("change", ["context", "parent", "kind", "segment", "forged"])
def test_what_was_changed_is_refused_with_its_entry(store: Store, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    session = store.session("talk")
    entry, first = session.entry(2), session.entry(0)
    values: dict[str, Any] = {
        "context": json.dumps({**entry.context, "said": "x"}),
        "parent": first.id,
        "kind": "tokens",
        "segment": bytes.fromhex(session.entry(1).segment),
    }
    with sqlite3.connect(store.database.path) as tables:
        if change == "forged":
            context = {**entry.context, "signature": OTHER.entry(bytes(32), b"", entry.context)}
            tables.execute("UPDATE entries SET context = ? WHERE id = ?", (canonical_json(context).decode(), entry.id))
        else:
            tables.execute(f"UPDATE entries SET {change} = ? WHERE id = ?", (values[change], entry.id))
    tables.close()
    told = refusal(store, Policy(signers=frozenset({SIGNER.public, OTHER.public})), monkeypatch)
    assert "entry 2" in told


def test_tokens_put_in_the_place_of_a_segment_are_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of such a file stands in no signed entry; that of its tokens does."""
    other = store.session("other", create=True)
    other.append_tokens(ids_of(7, seed=5), WHOLE)
    forged, first = bytes.fromhex(other.entry(0).segment), bytes.fromhex(store.session("talk").entry(0).segment)
    store.objects.delete(first.hex())
    with store.database.write() as tables:
        tables.execute("UPDATE segments SET tokens = ? WHERE digest = ?", (forged, first))
    assert "holds other tokens" in refusal(store, Policy(signers=frozenset({SIGNER.public})), monkeypatch)


def test_policies_are_read_strictly(tmp_path: Path) -> None:
    toml, other = tmp_path / "trust.toml", tmp_path / "trust.json"
    fields = {"signers": [SIGNER.public.upper()], "codecs": ["lossless", "ab" * 8], "max_kl_nats": 0.01}
    toml.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items()))
    other.write_text(json.dumps(fields))
    expected = Policy(frozenset({SIGNER.public}), frozenset({"lossless", "ab" * 8}), 0.01)
    assert Policy.from_file(toml) == Policy.from_file(other) == expected
    bad = ["signer = []", "signers = 'x'", "signers = ['x']", "codecs = [1]", "codecs = ['ABC DEF']", "not toml"]
    for text in (*bad, "codecs = ['abc'", "max_kl_nats = -1", "max_kl_nats = true", "max_kl_nats = nan"):
        toml.write_text(text)
        with pytest.raises(FormatError) as failure:
            Policy.from_file(toml)
        assert failure.value.path == toml
    assert Policy.from_json({}) == Policy()
    assert Policy.from_json({"signers": []}).signers == frozenset()


def test_nobody_is_trusted_by_an_empty_list(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not name" in refusal(store, Policy(signers=frozenset()), monkeypatch)
    assert issubclass(TrustError, KVCompressError)
    assert not issubclass(TrustError, IntegrityError)
