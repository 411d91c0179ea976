"""Files by digest lie in a folder or at any address, and what is done with them does not depend on which."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from kvcompress.errors import InputError, IntegrityError
from kvcompress.format.working_folder import PREFIX
from kvcompress.store.objects import LocalObjects, Objects, RemoteObjects, checked, content_digest
from kvcompress.store.segment import part_of
from kvcompress.store.settings import AGE, USE
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

DATA = b"what a segment holds"
DIGEST = content_digest(DATA)
WHOLE = snapshot_of(ids_of(60))


@pytest.fixture(params=["folder", "memory", "file"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return LocalObjects(tmp_path / "segments")
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")
    return RemoteObjects(f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/far")


def test_what_was_put_comes_back_until_it_is_deleted(objects: Objects) -> None:
    assert objects.size(DIGEST) is None
    assert list(objects.found()) == []
    assert objects.put(DIGEST, DATA) == len(DATA)
    assert objects.put(DIGEST, DATA) == 0  # it lies there already
    assert objects.size(DIGEST) == len(DATA)
    assert checked(objects, DIGEST) == DATA
    [found] = objects.found()
    assert (found.name, found.size_bytes) == (DIGEST, len(DATA))
    assert found.modified <= time.time() + 60
    objects.delete(DIGEST)
    objects.delete(DIGEST)
    assert objects.size(DIGEST) is None
    with pytest.raises(InputError):
        objects.get(DIGEST)


def test_other_content_is_replaced_found_and_refused(objects: Objects) -> None:
    objects.put(DIGEST, b"cut")
    with pytest.raises(IntegrityError, match="was changed"):
        checked(objects, DIGEST)
    assert objects.put(DIGEST, DATA) == len(DATA)
    assert checked(objects, DIGEST) == DATA
    assert objects.replace(DIGEST, b"anew") == 4
    assert objects.get(DIGEST) == b"anew"
    with pytest.raises(IntegrityError, match="more than 3"):
        objects.get(DIGEST, 3)


@pytest.mark.parametrize("name", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 32 + "/" + "a" * 31])
def test_only_digests_are_names(objects: Objects, name: str) -> None:
    for ask in (objects.size, objects.get, objects.delete):
        with pytest.raises(InputError, match="no digest"):
            ask(name)


def test_left_overs_of_a_write_are_found_and_swept(objects: Objects) -> None:
    objects.put(DIGEST, DATA)
    if isinstance(objects, LocalObjects):
        rest = objects.folder / DIGEST[:2] / f"{PREFIX}abc.tmp"
        rest.write_bytes(b"half")
    else:
        assert isinstance(objects, RemoteObjects)
        objects.files.pipe_file(f"{objects.root}/{DIGEST[:2]}/{PREFIX}abc.tmp", b"half")
    rests = [found for found in objects.found() if found.name is None]
    assert [found.size_bytes for found in rests] == [4]
    objects.sweep(rests[0])
    assert [found.name for found in objects.found()] == [DIGEST]


def test_addresses_that_nothing_knows_are_refused_in_one_line() -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")
    with pytest.raises(InputError, match="cannot be used") as failure:
        RemoteObjects("nosuchprotocol://place")
    assert "\n" not in str(failure.value)


def test_a_store_whose_segments_lie_elsewhere_does_all_that_others_do(place: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra store)")
    address = f"memory://{uuid.uuid4().hex}"
    with Store(place, create=True, segments=address) as store:
        session = store.session("talk", create=True)
        for tokens in (20, 40, 60):
            session.append(part_of(WHOLE, 0, tokens), lossless=True)
        session.branch("other", at=0)
        assert not (place / "segments").exists()
    with Store(place) as again:
        session = again.session("talk")
        assert same(session.snapshot(), WHOLE)
        session.rewind(0)
        memory = fsspec.filesystem("memory")
        root = again.objects.root  # type: ignore[attr-defined]
        memory.pipe_file(f"{root}/{'c' * 2}/{'c' * 62}", b"nothing leads here")
        collected = again.gc(grace_seconds=-60)
        assert (collected.segments, collected.files) == (2, 1)
        assert len(memory.find(root)) == 1
        assert all(one.verify().ok for one in again)
        memory.rm(memory.find(root)[0])
        assert (session.verify().kind, session.verify().bad) == ("segment", 0)


# -- what makes room first


def squeezed(path: Path, evict: str) -> set[str]:
    """Which of three sessions have left their token ids alone, the oldest of them used last."""
    with Store(path, create=True) as store:
        for index, name in enumerate(("old", "middle", "new")):
            session = store.session(name, create=True)
            session.append(snapshot_of(ids_of(60, seed=index), size=64), lossless=True)
        with store.database.write() as tables:
            for index, name in enumerate(("old", "middle", "new")):
                segment = bytes.fromhex(store.session(name).entry(0).segment)
                when = (float(index + 1), float((index - 1) % 3 + 1), segment)
                tables.execute("UPDATE segments SET created = ?, used = ? WHERE digest = ?", when)
        taken = store.statistics()
        least = min(found.size_bytes for found in store.objects.found())
        store.database.checkpoint(shrink=True)
        store.set_limit(taken.stored_bytes + store.statistics().database_bytes - least // 2, evict=evict)
        assert store.gc().squeezed == 1
        gone = set()
        for session in store:
            assert session.verify().ok
            try:
                session.snapshot()
            except InputError:
                gone.add(session.name)
        return gone


def test_age_lets_the_oldest_go_first_and_use_what_was_not_used_for_longest(tmp_path: Path) -> None:
    assert squeezed(tmp_path / "age", AGE) == {"old"}
    assert squeezed(tmp_path / "use", USE) == {"middle"}


def test_another_order_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"'size' is no order of eviction.*age or use"):
        store.set_limit(1000, evict="size")
