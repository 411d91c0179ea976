"""Small files beside a store: seals, records of provenance, trust policies, keys and the keyring."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from eval.fuzz.mutate import EXTREMES, bytes_changed, json_text
from eval.fuzz.stand import KEY, SIGNER_BYTES, Stand, the_same_each_time
from eval.fuzz.subject import Subject, require_same, through
from kvcompress.errors import IntegrityError, KVCompressError
from kvcompress.store.crypto import Keyring
from kvcompress.store.keys import StoreKey
from kvcompress.store.policy import Policy
from kvcompress.store.provenance import provenance, read_record
from kvcompress.store.reading import SessionLog
from kvcompress.store.seal import Seal, seal, verify_seal
from kvcompress.store.signing import Signer

PASSPHRASE = StoreKey(b"a passphrase", True, 2)


def paper_subjects(directory: Path) -> list[Subject]:
    """Return the kinds of this module."""
    stand = Stand(directory / "papers")
    session = stand.open().session("first")
    with the_same_each_time():
        made, record = seal(session, stand.signer), provenance(session, 1).to_json()
        rings = [Keyring.generate(), Keyring.generate()]
        locked = [rings[0].locked(KEY), rings[1].locked(PASSPHRASE)]
    return [
        Subject(
            "seal", _json(made.to_json()), partial(through, directory / "seal.json", partial(_seal, session, made))
        ),
        Subject("provenance", _json(record), partial(through, directory / "record.json", partial(_record, record))),
        *_policies(directory, session, stand.signer.public),
        *_keys(directory),
        Subject(
            "keyring",
            lambda chance: json_text(chance, json.loads(chance.choice(locked))),
            partial(_keyring, rings),
        ),
    ]


def _json(value: Any) -> Callable[[Random], bytes]:
    return lambda chance: json_text(chance, value)


def _seal(session: SessionLog, good: Seal, path: Path) -> None:
    found = Seal.load(path)
    verdict = verify_seal(session, found)
    if verdict.ok and found.signature is None:  # one that is not signed says when it was made as it likes
        require_same("the seal", (found.count, found.digest), (good.count, good.digest))
    verdict = verify_seal(session, found, [good.signer or ""])
    if not verdict.ok:
        raise IntegrityError(verdict.what)
    require_same("the seal", found, good)


def _record(good: dict[str, Any], path: Path) -> None:
    found = read_record(path).to_json()
    label = {"session": ""}  # nothing vouches for it
    require_same("the record", found | label, good | label)


def _policies(directory: Path, session: SessionLog, signer: str) -> list[Subject]:
    fields = {"signers": [signer, "0" * 64], "codecs": ["lossless", "tokens", "ab" * 8], "max_kl_nats": 0.01}
    fields |= {"max_context_lost": 0.5, "min_top1_agreement": 0.25}

    def read(path: Path) -> None:
        policy, head = Policy.from_file(path), session.head
        assert head is not None
        policy.require(session, head)

    return [
        Subject("policy json", _json(fields), partial(through, directory / "trust.json", read)),
        Subject(
            "policy toml",
            lambda chance: _toml_changed(chance, fields),
            partial(through, directory / "trust.toml", read),
        ),
    ]


def _toml_changed(chance: Random, fields: dict[str, Any]) -> bytes:
    found = dict(fields)
    if chance.random() < 0.6:
        found[chance.choice((*fields, "other", "a.b", "\x1b"))] = chance.choice(EXTREMES)
    lines = [f"{name} = {_toml(value)}" for name, value in found.items()]
    text = "\n".join((*lines, chance.choice(("", "[table]", "signers = []", "a = [" * 3000)))).encode(errors="replace")
    return bytes_changed(chance, text) if chance.random() < 0.5 else text


def _toml(value: Any) -> str:
    """Return a value as TOML writes most of them, else in a way that it does not."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else json.dumps(value)


def _keys(directory: Path) -> list[Subject]:
    pem = directory / "good.pem"
    pem.unlink(missing_ok=True)
    Signer(SIGNER_BYTES).save(pem)
    texts = (KEY.secret, KEY.secret.hex().encode(), KEY.secret.hex().encode() + b"\n")
    signer = pem.read_bytes()
    return [
        Subject(
            "key file",
            lambda chance: bytes_changed(chance, chance.choice(texts)),
            partial(through, directory / "key", StoreKey.from_file),
        ),
        Subject(
            "signer",
            lambda chance: bytes_changed(chance, signer),
            partial(through, directory / "signer.pem", Signer.from_file),
        ),
    ]


def _keyring(good: list[Keyring], data: bytes) -> None:
    """Open a keyring with both kinds of keys; what opens must be what was locked."""
    refused, text = [], data.decode(errors="replace")
    for key in (KEY, PASSPHRASE):
        try:
            require_same("the keyring", Keyring.unlocked(text, key) in good, True)
        except KVCompressError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]
