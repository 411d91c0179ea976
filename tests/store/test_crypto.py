"""Encrypted stores: nothing readable on the disk, three different refusals, a key that is exchanged at any moment."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import sqlite3
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.errors import InputError, IntegrityError, KVCompressError, WrongKeyError
from kvcompress.store.crypto import Cipher, Keyring
from kvcompress.store.encrypted import EncryptedObjects
from kvcompress.store.keyring import finish_rekey, is_rekeying, rekey
from kvcompress.store.keys import ENVIRONMENT, StoreKey
from kvcompress.store.segment import part_of
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

WHOLE = snapshot_of(ids_of(60))
KEY, OTHER = StoreKey(b"k" * 32), StoreKey(b"o" * 32)
NAME, MARK, TEXT = "holiday-in-wonderland", "before-the-tea-party", "the hatter said twelve"


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store(place, create=True, key=KEY) as found:
        yield found


def talk(store: Store, name: str = NAME) -> None:
    session = store.session(name, create=True)
    for tokens in (7, 20, 60):
        session.append(part_of(WHOLE, 0, tokens), lossless=True, said={"text": TEXT})
    session.checkpoint(MARK, said={"why": TEXT})


def raw_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def needles() -> list[bytes]:
    """What a reader of the disk would look for: names, texts, and token ids in the forms that files hold them in."""
    ids = WHOLE.token_ids[20:28].tolist()
    tokens = [struct.pack(f"<8{kind}", *ids) for kind in "bhiq"]
    model = [b"tiny", b"llama", b"a" * 32]
    return [NAME.encode(), MARK.encode(), TEXT.encode(), ",".join(map(str, ids)).encode(), *tokens, *model]


def test_nothing_readable_is_left_on_the_disk(store: Store) -> None:
    talk(store)
    on_disk = raw_bytes(store.path)  # the log before the database, as the connection is still open
    assert (store.path / "store.db-wal").stat().st_size > 0
    for needle in needles():
        assert needle not in on_disk
    assert same(store.session(NAME).snapshot(MARK), WHOLE)
    store.close()
    for needle in needles():
        assert needle not in raw_bytes(store.path)
    assert b"\x89KVZ" not in raw_bytes(store.path)


def test_the_search_would_find_them_in_a_plain_store(place: Path) -> None:
    with Store(place, create=True) as plain:
        talk(plain)
        found = [needle for needle in needles() if needle in raw_bytes(plain.path)]
    assert {NAME.encode(), MARK.encode(), TEXT.encode(), b"tiny", b"a" * 32} <= set(found)


def test_an_encrypted_store_does_all_that_a_plain_one_does(store: Store) -> None:
    talk(store)
    session = store.session(NAME)
    branch = session.branch("other", at=1)
    assert [info.name for info in store.list()] == [NAME, "other"]
    assert session.names() == {MARK: 3}
    assert session.rewind(MARK).end == 60
    session.checkpoint()
    session.forget(MARK)
    branch.append(WHOLE, lossless=True)
    assert len(list(store.objects.found())) == 3  # equal contents lie there once
    store.gc(grace_seconds=0, keep_last=1)
    assert session.verify().ok
    assert branch.verify().ok
    with pytest.raises(InputError, match="already"):
        session.branch("other")
    store.close()
    with Store(store.path, key=KEY) as again:
        assert same(again.session("other").snapshot(), WHOLE)


def test_equal_contents_are_told_by_nobody_without_the_key(tmp_path: Path) -> None:
    names: list[set[str | None]] = []
    for folder in ("a", "b"):
        with Store(tmp_path / folder, create=True, key=KEY) as store:
            store.session(NAME, create=True).append(WHOLE, lossless=True)
            names.append({found.name for found in store.objects.found()})
    assert not names[0] & names[1]


# -- refusals


def test_a_wrong_key_and_a_missing_one_are_refused(store: Store) -> None:
    store.close()
    with pytest.raises(WrongKeyError, match="wrong key"):
        Store(store.path, key=OTHER)
    with pytest.raises(WrongKeyError, match=r"wrong key: the store opens with a key"):
        Store(store.path, key=StoreKey.from_passphrase("x", cost=1024))
    with pytest.raises(WrongKeyError, match="is encrypted"):
        Store(store.path)


def test_a_key_is_refused_by_a_store_that_is_not_encrypted(place: Path) -> None:
    with Store(place, create=True) as plain:
        talk(plain)
    with pytest.raises(WrongKeyError, match="not encrypted"):
        Store(place, key=KEY, create=True)


def test_without_the_package_the_error_names_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for key in (KEY, None):
        with pytest.raises(InputError, match=r"package `cryptography`.*kvcompress\[store\]") as failure:
            Store(store.path, key=key)
        assert not isinstance(failure.value, WrongKeyError)


def test_every_changed_byte_of_a_segment_is_tampering(store: Store) -> None:
    store.session(NAME, create=True).append(part_of(WHOLE, 0, 2), lossless=True)
    [found] = store.objects.found()
    path, whole = Path(found.path), Path(found.path).read_bytes()
    for index in (*range(0, 60), *range(60, len(whole), 17)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(IntegrityError, match="tampered"):
            store.session(NAME).snapshot()
    for cut in (0, 10, 24, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(IntegrityError, match="tampered"):
            store.session(NAME).snapshot()
    path.write_bytes(whole)
    assert store.session(NAME).verify().ok


def test_one_segment_does_not_stand_for_another(store: Store) -> None:
    talk(store)
    paths = [Path(found.path) for found in store.objects.found()]
    shutil.copy(paths[0], paths[1])
    with pytest.raises(IntegrityError, match="tampered"):
        store.session(NAME).snapshot()


@pytest.mark.parametrize("change", ["flip", "plain"])
def test_a_changed_value_of_the_database_is_tampering(store: Store, change: str) -> None:
    talk(store)
    store.close()
    with sqlite3.connect(store.path / "store.db") as tables:
        [context] = tables.execute("SELECT context FROM entries WHERE id % 4294967296 = 1").fetchone()
        value = context[:-1] + bytes([context[-1] ^ 1]) if change == "flip" else '{"number": 1}'
        tables.execute("UPDATE entries SET context = ? WHERE id % 4294967296 = 1", (value,))
    tables.close()
    with Store(store.path, key=KEY) as again:
        session = again.session(NAME)
        assert (session.verify().kind, session.verify().bad) == ("edit", 1)
        with pytest.raises(IntegrityError, match="tampered"):
            session.entry(1)


def test_a_name_that_was_moved_is_found(store: Store) -> None:
    talk(store)
    with store.database.write() as tables:
        tables.execute("UPDATE names SET number = 1")
    with pytest.raises(IntegrityError, match="was changed"):
        store.session(NAME).snapshot(MARK)


def test_a_changed_keyring_is_tampering_and_no_wrong_key(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.path / "store.db") as tables:
        [ring] = tables.execute("SELECT ring FROM keyring").fetchone()
        at = ring.index('"ring":"') + 20
        tables.execute("UPDATE keyring SET ring = ?", (ring[:at] + ("0" if ring[at] != "0" else "1") + ring[at + 1 :],))
    tables.close()
    with pytest.raises(IntegrityError, match="changed: the key is right"):
        Store(store.path, key=KEY)


def test_scrypt_parameters_from_the_disk_are_bounded(store: Store) -> None:
    parameters = {"name": "scrypt", "n": 1 << 30, "r": 8, "p": 1, "salt": "00" * 16}
    with pytest.raises(KVCompressError, match="out of range"):
        StoreKey.from_passphrase("x").derive(parameters, 32)


# -- keys


def test_keys_come_from_files_the_environment_and_passphrases(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, path = StoreKey.generate(), tmp_path / "key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv(ENVIRONMENT, key.secret.hex())
    assert StoreKey.from_file(path) == StoreKey.from_environment() == key
    (tmp_path / "raw").write_bytes(key.secret)
    assert StoreKey.from_file(tmp_path / "raw") == key
    with pytest.raises(InputError, match="already exists"):
        key.save(path)
    (tmp_path / "none").write_text("no key")
    for refused in (lambda: StoreKey.from_file(tmp_path / "none"), lambda: StoreKey.from_environment("NOT_SET")):
        with pytest.raises(InputError):
            refused()
    assert "secret" not in repr(key)
    spoken = StoreKey.from_passphrase("pässword", cost=1024)
    Store(place, create=True, key=spoken).close()
    Store(place, key=StoreKey.from_passphrase("pa\u0308ssword")).close()  # the same letters, composed otherwise
    with pytest.raises(WrongKeyError, match="wrong key"):
        Store(place, key=StoreKey.from_passphrase("password"))


def test_pieces_longer_than_one_are_bound_to_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcompress.store.crypto.PIECE_BYTES", 10)
    cipher, digest, data = Cipher(Keyring.generate()), "ab" * 32, bytes(range(35))
    sealed = cipher.sealed_object(digest, data)
    assert cipher.opened_object(digest, sealed) == data
    assert sealed != cipher.sealed_object(digest, data)  # fresh nonces
    head, step = 24, 10 + 28
    swapped = (
        sealed[:head] + sealed[head + step : head + 2 * step] + sealed[head : head + step] + sealed[head + 2 * step :]
    )
    for changed in (swapped, sealed[:-1], sealed + b"x"):
        with pytest.raises(IntegrityError, match="tampered"):
            cipher.opened_object(digest, changed)


# -- another key


def opens(path: Path, key: StoreKey) -> bool:
    try:
        with Store(path, key=key) as store:
            session = store.session(NAME)
            return same(session.snapshot(), WHOLE) and session.verify().ok and session.names() == {MARK: 3}
    except WrongKeyError:
        return False


def test_a_store_is_given_another_key(store: Store) -> None:
    talk(store)
    anchor, before = store.session(NAME).entry(3).anchor, raw_bytes(store.path / "segments")
    with Store(store.path, key=KEY) as late:
        late.session(NAME)
        store.close()
        with Store(store.path, key=KEY) as mine:
            assert rekey(mine, OTHER) == 3
            assert not is_rekeying(mine)
            mine.session(NAME).checkpoint("after")
            mine.session(NAME).forget("after")
            assert mine.session(NAME).entry(3).anchor == anchor
        with pytest.raises(WrongKeyError, match="new key meanwhile"):
            late.session(NAME)
        with pytest.raises(WrongKeyError, match="new key meanwhile"):
            late.session("another", create=True)
    assert opens(store.path, OTHER)
    assert not opens(store.path, KEY)
    assert not set(before.split(b"\x89KVE")) & set(raw_bytes(store.path / "segments").split(b"\x89KVE")) - {b""}


def test_the_key_of_the_keyring_alone_is_exchanged_at_once(store: Store) -> None:
    talk(store)
    assert rekey(store, OTHER, everything=False) == 0
    store.session(NAME).checkpoint("on")
    store.close()
    with pytest.raises(WrongKeyError):
        Store(store.path, key=KEY)
    Store(store.path, key=OTHER).close()


def killed_at(path: Path, step: int) -> bool:
    """Re-key in a process that is killed before its n-th statement or file; tell whether it was."""
    pid = os.fork()
    if not pid:
        try:
            left = [step]

            def count(*_: object) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            store, renew = Store(path, key=KEY), EncryptedObjects.renew

            def counted(self: EncryptedObjects, digest: str) -> int:
                count()
                return renew(self, digest)

            EncryptedObjects.renew = counted  # type: ignore[method-assign]
            store.database.connection.set_trace_callback(count)
            rekey(store, OTHER)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0


def test_killed_at_any_moment_the_store_opens_with_one_of_the_keys(store: Store) -> None:
    talk(store)
    store.close()
    fresh = store.path.with_name("fresh")
    shutil.copytree(store.path, fresh)
    seen, step = set(), 0
    while True:
        shutil.rmtree(store.path)
        shutil.copytree(fresh, store.path)
        killed = killed_at(store.path, step)
        old, new = opens(store.path, KEY), opens(store.path, OTHER)
        assert old != new, step
        seen.add((old, new))
        if new:
            with Store(store.path, key=OTHER) as again:
                finish_rekey(again, OTHER)
                assert not is_rekeying(again)
            assert opens(store.path, OTHER)
        if not killed:
            break
        step += 1
    assert new
    assert seen == {(True, False), (False, True)}
    assert step > 20


def test_what_was_tampered_with_before_keeps_the_old_epoch(store: Store) -> None:
    talk(store)
    path = Path(next(iter(store.objects.found())).path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="tampered"):
        rekey(store, OTHER)
    assert is_rekeying(store)
    path.write_bytes(whole)
    assert finish_rekey(store, OTHER) == 1
    store.close()
    assert opens(store.path, OTHER)


def test_a_thread_that_wrote_with_the_old_key_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    talk(store)
    put = EncryptedObjects.put

    def slow(self: EncryptedObjects, digest: str, data: bytes) -> int:
        written = put(self, digest, data)
        monkeypatch.undo()
        rekey(store, OTHER)
        return written

    session = store.session(NAME)
    longer = snapshot_of(torch.cat([WHOLE.token_ids, ids_of(9, seed=3)]))
    monkeypatch.setattr(EncryptedObjects, "put", slow)
    with pytest.raises(WrongKeyError, match="new key meanwhile"):
        session.append(longer, lossless=True)
    session.append(longer, lossless=True)
    assert same(session.snapshot(), longer)


def test_plain_stores_have_no_key_to_exchange(place: Path) -> None:
    with Store(place, create=True) as plain, pytest.raises(InputError, match="not encrypted"):
        rekey(plain, OTHER)


def test_segments_elsewhere_are_encrypted_too(place: Path) -> None:
    import fsspec

    with Store(place, create=True, key=KEY, segments="memory://encrypted") as store:
        talk(store)
        memory = fsspec.filesystem("memory")
        held = {path: memory.cat_file(path) for path in memory.find("/encrypted")}
        assert held
        assert not any(b"\x89KVZ" in data for data in held.values())
        assert rekey(store, OTHER) == 3
        assert same(store.session(NAME).snapshot(), WHOLE)
        assert torch.equal(store.session(NAME).token_ids(), WHOLE.token_ids)
    fsspec.filesystem("memory").rm("/encrypted", recursive=True)
