"""One file with all of a session: it comes back equal, goes on, and nothing that was changed is taken."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.store.portable import export_session, import_session
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.store.examples import ids_of, same, snapshot_of

WHOLE = snapshot_of(ids_of(60))
Members = list[tuple[str, bytes]]


@pytest.fixture
def session(store: Store) -> StoredSession:
    found = store.session("talk", create=True)
    for tokens in (7, 20, 60):
        found.append(part_of(WHOLE, 0, tokens), lossless=True)
    found.checkpoint("end")
    found.rewind(1)
    return found


@pytest.fixture
def file(session: StoredSession, tmp_path: Path) -> Path:
    export_session(session, tmp_path / "talk.kvs")
    return tmp_path / "talk.kvs"


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other", create=True)


def equal(one: StoredSession, two: StoredSession) -> bool:
    """Whether two sessions have the same log, names and bits."""
    facts = [
        [(row.segment, row.context, row.anchor, row.digest) for row in session] + [session.names()]
        for session in (one, two)
    ]
    return facts[0] == facts[1] and same(one.snapshot(), two.snapshot()) and two.verify().ok


def test_a_session_comes_back_equal_and_goes_on(session: StoredSession, file: Path, other: Store) -> None:
    came = import_session(other, file)
    assert (came.session, came.entries, came.segments) == ("talk", 5, 3)
    there = other.session("talk")
    assert equal(session, there)
    assert same(there.snapshot("end"), WHOLE)
    assert import_session(other, file).entries == 0
    there.append(part_of(WHOLE, 0, 33), lossless=True)
    assert there.verify().ok
    longer = Path(f"{file}.2")
    export_session(there, longer)
    assert import_session(session.store, longer).entries == 1  # it goes on where it was
    assert equal(there, session)
    twice = Path(f"{file}.3")
    export_session(session, twice)
    assert twice.read_bytes() == longer.read_bytes()
    assert import_session(other, twice, "copy").segments == 0
    other.gc(grace_seconds=0)
    assert equal(session, other.session("copy"))


def test_a_branch_brings_what_it_went_on_from_and_no_more(session: StoredSession, other: Store, tmp_path: Path) -> None:
    branch = session.branch("branch", at=1)
    longer = snapshot_of(torch.cat([WHOLE.token_ids[:20], ids_of(9, seed=5)]))
    branch.append(longer, lossless=True)
    export_session(branch, tmp_path / "b")
    came = import_session(other, tmp_path / "b")
    assert came.segments == 3
    there = other.session("branch")
    assert equal(branch, there)
    assert [info.name for info in other.list()] == ["branch"]
    there.rewind(turns=2)
    assert there.verify().ok
    assert there.tokens == 7
    second = session.branch("second", at=1)
    export_session(second, tmp_path / "s")
    assert import_session(other, tmp_path / "s").segments == 0  # its way is here with the first one
    assert equal(second, other.session("second"))


def test_sessions_that_went_on_differently_are_refused(session: StoredSession, file: Path, other: Store) -> None:
    import_session(other, file)
    other.session("talk").checkpoint("here")
    session.checkpoint("there")
    export_session(session, file, force=True)
    with pytest.raises(InputError, match=r"differently.*--as NAME"):
        import_session(other, file)
    assert import_session(other, file, "second").entries == 6


def test_what_had_to_make_room_travels_as_token_ids(session: StoredSession, other: Store, tmp_path: Path) -> None:
    from kvcompress.store.collect import _leave_tokens

    wide = snapshot_of(ids_of(50, seed=8), size=64)
    talk = session.store.session("wide", create=True)
    talk.append(wide, lossless=True)
    assert _leave_tokens(session.store, bytes.fromhex(talk.entry(0).segment)) == 1
    export_session(talk, tmp_path / "w")
    assert import_session(other, tmp_path / "w").segments == 1
    there = other.session("wide")
    assert torch.equal(there.token_ids(), wide.token_ids)
    assert there.verify().ok
    other.gc(grace_seconds=0)
    assert torch.equal(there.token_ids(), wide.token_ids)


# -- files that somebody made


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def written(file: Path, content: Members, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in content:
            archive.writestr(name, data)
    return file


def segment(content: Members) -> int:
    return next(place for place, (name, _) in enumerate(content) if name.startswith("segments/"))


HOSTILE: dict[str, Callable[[Members], Members]] = {
    "a name that leads elsewhere": lambda all_: [*all_, ("../segments/" + "a" * 64, b"")],
    "an absolute name": lambda all_: [*all_, ("/etc/passwd", b"")],
    "a member that nobody asks for": lambda all_: [*all_, ("logs/" + "a" * 64, b"")],
    "no head": lambda all_: all_[1:],
    "no log": lambda all_: [one for one in all_ if not one[0].startswith("logs/")],
    "no segments": lambda all_: [one for one in all_ if not one[0].startswith("segments/")],
    "a member twice": lambda all_: [*all_, all_[-1]],
    "another segment": lambda all_: [
        *all_[: segment(all_)],
        (all_[segment(all_)][0], b"x"),
        *all_[segment(all_) + 1 :],
    ],
    "a head of nothing": lambda all_: [("head.json", b"{}"), *all_[1:]],
    "a head of another version": lambda all_: [
        ("head.json", all_[0][1].replace(b'"version":1', b'"version":9')),
        *all_[1:],
    ],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_somebody_made_is_refused_in_one_line(what: str, file: Path, other: Store) -> None:
    written(file, HOSTILE[what](members(file)))
    with pytest.raises(FormatError) as failure:
        import_session(other, file)
    assert "\n" not in str(failure.value)
    assert other.list() == []


def test_bombs_and_lies_about_sizes_are_refused_before_they_are_read(file: Path, other: Store, tmp_path: Path) -> None:
    content = members(file)
    bomb = written(tmp_path / "bomb", [(content[0][0], bytes(1 << 22)), *content[1:]], zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="not stored as it is"):
        import_session(other, bomb)
    data = file.read_bytes()
    place = data.index(b"PK\x01\x02")
    for offset in (20, 24, 42):  # what the directory says of the packed size, the size, and the place
        changed = bytearray(data)
        changed[place + offset] ^= 0x55
        (tmp_path / "lie").write_bytes(changed)
        with pytest.raises(FormatError):
            import_session(other, tmp_path / "lie")
    many = data[:-12] + b"\xfe\xff\xfe\xff" + data[-8:]
    (tmp_path / "many").write_bytes(many)
    with pytest.raises(FormatError, match="65534 members"):
        import_session(other, tmp_path / "many")
    (tmp_path / "text").write_bytes(b"no zip at all, but long enough to be one")
    with pytest.raises(FormatError, match="no exported session"):
        import_session(other, tmp_path / "text")


def test_whatever_byte_is_changed_nothing_changed_is_taken(session: StoredSession, file: Path, other: Store) -> None:
    data, chance = file.read_bytes(), random.Random(5)
    expected = [(row.segment, row.anchor) for row in session]
    for turn in range(60):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        cut = changed if turn % 4 else changed[: chance.randrange(len(data))]
        file.write_bytes(cut)
        with suppress(KVCompressError):  # a bit may say nothing, such as one of a member's permissions
            import_session(other, file, f"s{turn}")
            assert [(row.segment, row.anchor) for row in other.session(f"s{turn}")] == expected
            assert other.session(f"s{turn}").verify().ok
    assert len(other.list()) < 30


def test_tokens_that_an_entry_only_claims_are_refused(session: StoredSession, tmp_path: Path, other: Store) -> None:
    """Other sessions share segments by the digest of their tokens, so that digest must be true."""
    from kvcompress.store.segment import prefix_digest

    with session.store.database.write() as tables:
        tables.execute("UPDATE segments SET prefix = ?", (prefix_digest(ids_of(60, seed=99)),))
    liar = session.store.session("liar", create=True)
    liar.append(snapshot_of(ids_of(60, seed=3)), lossless=True)
    from kvcompress.format.strict_json import canonical_json
    from kvcompress.store.log import Link

    entry = liar.entry(0)
    context = canonical_json(dict(entry.context) | {"prefix": prefix_digest(ids_of(60, seed=99)).hex()})
    link = Link().then(bytes.fromhex(entry.segment), context)
    with session.store.database.write() as tables:
        values = (context.decode(), link.anchor, link.digest, entry.id)
        tables.execute("UPDATE entries SET context = ?, anchor = ?, digest = ? WHERE id = ?", values)
        tables.execute("UPDATE sessions SET anchor = ?, digest = ? WHERE id = ?", (*values[1:3], liar.id))
    export_session(liar, tmp_path / "liar")
    with pytest.raises(FormatError, match="other tokens than its entry states"):
        import_session(other, tmp_path / "liar")


def test_an_export_appears_whole_or_not_at_all(session: StoredSession, tmp_path: Path) -> None:
    path = session.store.path / "segments" / session.entry(2).segment[:2] / session.entry(2).segment[2:]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(FormatError, match="changed"):
        export_session(session, tmp_path / "talk")
    assert not (tmp_path / "talk").exists()
    with pytest.raises(InputError, match="empty"):
        export_session(session.store.session("new", create=True), tmp_path / "new")
