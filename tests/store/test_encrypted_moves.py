"""Sessions of encrypted stores on their way: nothing readable outside, and the same key opens them elsewhere."""

from __future__ import annotations

import builtins
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cryptography", reason="cryptography is not installed (extra store)")

from kvcompress.errors import FormatError, InputError, IntegrityError, KVCompressError, WrongKeyError
from kvcompress.store.keyring import rekey
from kvcompress.store.keys import StoreKey
from kvcompress.store.portable import export_session, import_session
from kvcompress.store.segment import part_of
from kvcompress.store.signing import Signer
from kvcompress.store.store import Store
from kvcompress.store.sync import PULL, PUSH, sync
from tests.store.examples import ids_of, same, snapshot_of
from tests.store.test_crypto import KEY, MARK, NAME, OTHER, WHOLE, needles, talk
from tests.store.test_portable import equal, members, written

SPOKEN = StoreKey.from_passphrase("open sesame", cost=1024)


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store(place, create=True, key=KEY) as found:
        talk(found)
        yield found


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    export_session(store.session(NAME), tmp_path / "talk.kvs")
    return tmp_path / "talk.kvs"


@pytest.fixture
def address(tmp_path: Path) -> str:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")
    return str(tmp_path / "place")


def elsewhere(tmp_path: Path, key: StoreKey | None, name: str = "other") -> Store:
    return Store(tmp_path / name, create=True, key=key)


def longer() -> Any:
    return snapshot_of(torch.cat([WHOLE.token_ids, ids_of(9, seed=3)]))


def alike(one: Any, two: Any) -> bool:
    """Whether two sessions whose digests are made with different keys hold the same."""
    facts = [
        [(row.kind, row.start, row.end, row.context.get("time"), row.context.get("said")) for row in session]
        for session in (one, two)
    ]
    names = one.names() == two.names()
    return (
        facts[0] == facts[1] and names and same(one.snapshot(), two.snapshot()) and one.verify().ok and two.verify().ok
    )


# -- nothing readable


def test_nothing_readable_is_in_a_file(file: Path) -> None:
    data = file.read_bytes()
    assert not [needle for needle in needles() if needle in data]
    assert b"\x89KVZ" not in data
    assert {name.partition("/")[0] for name, _ in members(file)} == {"keyring.json", "head.bin", "logs", "segments"}


def test_nothing_readable_is_at_a_place(store: Store, address: str) -> None:
    sync(store, address)
    paths = [path for path in Path(address).rglob("*") if path.is_file()]
    data = b"".join(path.read_bytes() for path in paths) + "".join(map(str, paths)).encode()
    assert len(paths) == 1 + 1 + 1 + 3
    assert not [needle for needle in needles() if needle in data]
    assert b"\x89KVZ" not in data


def test_the_search_would_find_them_in_a_plain_file(tmp_path: Path) -> None:
    with Store(tmp_path / "plain", create=True) as plain:
        talk(plain)
        export_session(plain.session(NAME), tmp_path / "plain.kvs")
    assert len([needle for needle in needles() if needle in (tmp_path / "plain.kvs").read_bytes()]) >= 3


# -- the same key


@pytest.mark.parametrize("key", [KEY, SPOKEN], ids=["key", "passphrase"])
def test_the_same_key_takes_it_in_bit_by_bit(tmp_path: Path, key: StoreKey) -> None:
    with elsewhere(tmp_path, key, "home") as home, elsewhere(tmp_path, key) as other:
        talk(home)
        session = home.session(NAME)
        export_session(session, tmp_path / "a.kvs")
        assert import_session(other, tmp_path / "a.kvs").segments == 3
        there = other.session(NAME)
        assert equal(session, there)
        assert there.names() == {MARK: 3}
        there.append(longer(), lossless=True)
        export_session(there, tmp_path / "b.kvs")
        assert import_session(home, tmp_path / "b.kvs").entries == 1
        assert equal(there, session)
        on_disk = b"".join(path.read_bytes() for path in other.path.rglob("*") if path.is_file())
        assert not [needle for needle in needles() if needle in on_disk]
        assert {found.name for found in home.objects.found()} == {found.name for found in other.objects.found()}
        other.gc(grace_seconds=0)
        assert other.statistics().stored_bytes == sum(found.size_bytes for found in other.objects.found())
        assert equal(there, session)
        other.close()
    with Store(tmp_path / "other", key=key) as again:
        assert same(again.session(NAME).snapshot(), longer())


def test_who_had_an_empty_store_open_is_told_that_it_took_other_digests(file: Path, tmp_path: Path) -> None:
    with elsewhere(tmp_path, KEY) as other, Store(tmp_path / "other", key=KEY) as late:
        import_session(other, file)
        with pytest.raises(WrongKeyError, match="new key meanwhile"):
            late.session("mine", create=True)


# -- other stores


def test_a_store_of_another_key_encrypts_it_anew(store: Store, file: Path, tmp_path: Path) -> None:
    session = store.session(NAME)
    with elsewhere(tmp_path, OTHER) as other:
        with pytest.raises(WrongKeyError, match="wrong key: it does not open the file"):
            import_session(other, file)
        assert other.list() == []
        assert import_session(other, file, key=KEY).segments == 3
        there = other.session(NAME)
        assert alike(session, there)
        assert other.digest_key != store.digest_key
        assert not {entry.segment for entry in session if entry.segment} & {entry.segment for entry in there}
        assert [entry.context["was"] for entry in there] == [entry.digest for entry in session]
        session.append(longer(), lossless=True)
        export_session(session, file, force=True)
        assert import_session(other, file, key=KEY).entries == 1
        assert alike(session, there)
        there.append(snapshot_of(torch.cat([longer().token_ids, ids_of(3, seed=1)])), lossless=True)
        assert there.verify().ok


def test_a_store_of_the_same_key_that_holds_something_tells_it_in_its_own_digests(
    store: Store, file: Path, tmp_path: Path
) -> None:
    with elsewhere(tmp_path, KEY) as other:
        other.session("mine", create=True).append(WHOLE, lossless=True)
        key = other.digest_key
        import_session(other, file)
        assert other.digest_key == key
        assert alike(store.session(NAME), other.session(NAME))
        assert other.session("mine").verify().ok


def test_a_plain_store_takes_it_only_if_it_is_told_to(store: Store, file: Path, tmp_path: Path) -> None:
    with elsewhere(tmp_path, None) as plain:
        with pytest.raises(WrongKeyError, match="the file is encrypted"):
            import_session(plain, file)
        with pytest.raises(InputError, match=r"hold its session readable.*--readable"):
            import_session(plain, file, key=KEY)
        assert plain.list() == []
        import_session(plain, file, key=KEY, readable=True)
        there = plain.session(NAME)
        assert alike(store.session(NAME), there)
        assert store.digest_key not in b"".join(path.read_bytes() for path in plain.path.rglob("*") if path.is_file())
        there.append(longer(), lossless=True)
        export_session(there, tmp_path / "plain.kvs")
        with elsewhere(tmp_path, OTHER, "secret") as secret:  # and in again, under a key of its own
            import_session(secret, tmp_path / "plain.kvs")
            assert alike(there, secret.session(NAME))
            assert all(entry.context["salt"] for entry in secret.session(NAME))


def test_branches_stand_ins_and_collected_turns_are_told_anew(store: Store, tmp_path: Path) -> None:
    from kvcompress.store.collect import _leave_tokens

    session = store.session(NAME)
    wide = snapshot_of(ids_of(50, seed=8), size=64)
    talk_wide = store.session("wide", create=True)
    for tokens in (20, 40, 50):
        talk_wide.append(part_of(wide, 0, tokens), lossless=True)
    assert _leave_tokens(store, bytes.fromhex(talk_wide.entry(1).segment)) == 1
    talk_wide.rewind(1)
    store.gc(grace_seconds=0)
    branch = session.branch("branch", at=1)
    branch.append(part_of(WHOLE, 0, 33), lossless=True)
    with elsewhere(tmp_path, OTHER) as other:
        for one in (talk_wide, branch):
            export_session(one, tmp_path / one.name)
            import_session(other, tmp_path / one.name, key=KEY)
            there = other.session(one.name)
            assert torch.equal(there.token_ids(), one.token_ids())
            assert there.verify().ok
        assert same(branch.snapshot(), other.session("branch").snapshot())
        other.gc(grace_seconds=0)
        assert torch.equal(other.session("wide").token_ids(), wide.token_ids[:40])


def test_signatures_hold_on_where_the_digests_do_and_go_where_they_do_not(tmp_path: Path) -> None:
    signer = Signer.generate()
    with Store(tmp_path / "signed", create=True, key=KEY, signer=signer) as signed:
        talk(signed)
        export_session(signed.session(NAME), tmp_path / "s.kvs")
    from kvcompress.store.provenance import provenance

    with elsewhere(tmp_path, KEY, "same") as same_key, elsewhere(tmp_path, OTHER) as other:
        import_session(same_key, tmp_path / "s.kvs")
        import_session(other, tmp_path / "s.kvs", key=KEY)
        assert provenance(same_key.session(NAME)).signer == signer.public
        assert provenance(other.session(NAME)).signer is None


# -- refusals


def test_the_three_refusals_are_three_lines(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(tmp_path, KEY) as other:
        content = members(file)
        for place, (name, data) in enumerate(content):
            if name == "keyring.json":
                continue
            for changed in (data[:-1] + bytes([data[-1] ^ 1]), data[: len(data) // 2], b""):
                bad = written(tmp_path / "bad.kvs", [*content[:place], (name, changed), *content[place + 1 :]])
                with pytest.raises(IntegrityError, match="tampered with or damaged") as failure:
                    import_session(other, bad)
                assert "\n" not in str(failure.value)
        segments = [place for place, (name, _) in enumerate(content) if name.startswith("segments/")]
        one, two = segments[:2]
        swapped = list(content)
        swapped[one], swapped[two] = (content[one][0], content[two][1]), (content[two][0], content[one][1])
        with elsewhere(tmp_path, KEY, "fresh") as fresh, pytest.raises(IntegrityError, match="tampered"):
            import_session(fresh, written(tmp_path / "bad.kvs", swapped))
        ring = content[0][1].replace(b'"ring":"', b'"ring":"00', 1)
        with pytest.raises(IntegrityError, match="the file's keyring was changed: the key is right"):
            import_session(other, written(tmp_path / "bad.kvs", [(content[0][0], ring), *content[1:]]))
        with pytest.raises(FormatError):  # a keyring of another file does not make this one readable
            import_session(other, written(tmp_path / "bad.kvs", content[1:]))
        assert other.list() == []
    with elsewhere(tmp_path, OTHER, "second") as second, pytest.raises(WrongKeyError, match="wrong key"):
        import_session(second, file)
    opens = pytest.raises(WrongKeyError, match="wrong key: the file opens with a key")
    with elsewhere(tmp_path, SPOKEN, "third") as third, opens:
        import_session(third, file)
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return real(name, *rest, **named)

    with elsewhere(tmp_path, None, "plain") as plain:
        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(InputError, match=r"package `cryptography`.*kvcompress\[store\]") as failure:
            import_session(plain, file, key=KEY, readable=True)
        assert not isinstance(failure.value, WrongKeyError)


def test_whatever_bit_of_a_file_is_changed_nothing_changed_is_taken(store: Store, file: Path, tmp_path: Path) -> None:
    data, expected = file.read_bytes(), [row.digest for row in store.session(NAME)]
    with elsewhere(tmp_path, KEY) as other:
        import_session(other, file, "first")
        for turn, at in enumerate(range(0, len(data), len(data) // 60)):
            changed = bytearray(data)
            changed[at] ^= 1 << turn % 8
            file.write_bytes(changed)
            with suppress(KVCompressError):  # a bit may say nothing, such as one of a member's permissions
                import_session(other, file, f"s{turn}")
                assert [row.digest for row in other.session(f"s{turn}")] == expected


# -- places


def test_stores_of_one_key_become_equal_by_way_of_a_place(store: Store, address: str, tmp_path: Path) -> None:
    [pushed] = sync(store, address)
    assert (pushed.direction, pushed.segments) == ("push", 3)
    with elsewhere(tmp_path, KEY) as other:
        [pulled] = sync(other, address)
        assert (pulled.direction, pulled.segments) == ("pull", 3)
        assert equal(store.session(NAME), other.session(NAME))
        other.session(NAME).append(longer(), lossless=True)
        assert [one.segments for one in sync(other, address)] == [1]
        assert [one.direction for one in sync(store, address)] == ["pull"]
        assert equal(store.session(NAME), other.session(NAME))
        assert [one.direction for one in sync(store, address)] == ["nothing"]


def test_places_are_no_mixtures(store: Store, address: str, tmp_path: Path) -> None:
    with elsewhere(tmp_path, None, "plain") as plain, elsewhere(tmp_path, KEY) as other:
        talk(plain)
        sync(plain, address + "-plain")
        with pytest.raises(InputError, match="readable"):
            sync(store, address + "-plain")
        sync(store, address)
        for direction in (PUSH, PULL):
            with pytest.raises(WrongKeyError, match="the place is encrypted"):
                sync(plain, address, direction=direction)
        talk(other, "mine")
        with pytest.raises(InputError, match="other digests"):
            sync(other, address)


def test_a_place_keeps_the_key_that_it_was_made_with(store: Store, address: str, tmp_path: Path) -> None:
    sync(store, address)
    rekey(store, OTHER)
    store.session(NAME).checkpoint("after")
    with pytest.raises(WrongKeyError, match="wrong key: it does not open the place"):
        sync(store, address)
    assert [one.entries for one in sync(store, address, key=KEY)] == [1]
    with elsewhere(tmp_path, SPOKEN) as other:
        sync(other, address, key=KEY)
        assert equal(store.session(NAME), other.session(NAME))


def test_what_was_changed_at_a_place_is_tampering(store: Store, address: str, tmp_path: Path) -> None:
    sync(store, address)
    with elsewhere(tmp_path, KEY) as other:
        for folder in ("segments", "logs", "heads"):
            path = next(path for path in sorted((Path(address) / folder).rglob("*")) if path.is_file())
            data = path.read_bytes()
            for changed in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), bytes(len(data))):
                path.write_bytes(changed)
                with pytest.raises(IntegrityError, match="tampered with or damaged"):
                    sync(other, address)
            path.write_bytes(data)
        [head] = [path for path in (Path(address) / "heads").rglob("*") if path.is_file()]
        moved = head.with_name("000000000007" + head.name[12:])  # an old head does not stand at a later place
        head.rename(moved)
        with pytest.raises(IntegrityError, match="tampered"):
            sync(other, address)
        moved.rename(head)
        sync(other, address)
        assert equal(store.session(NAME), other.session(NAME))


def test_of_two_stores_that_come_first_at_the_same_time_one_is_told(store: Store) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")
    from kvcompress.store.remote import Remote

    address = f"memory://{uuid.uuid4().hex}"
    place = Remote(address)
    place.put_keyring(b"one")
    with pytest.raises(InputError, match="right now"):
        place.put_keyring(b"two")
    assert place.keyring() == b"one"
    place._write(f"{place._root}/keyrings/{'a' * 16}.json", b"two")
    with pytest.raises(InputError, match="each with a keyring"):
        place.keyring()


def test_zip_readers_find_nothing_to_unpack_by_name(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        assert all(NAME not in name for name in archive.namelist())
