"""A second reader of stores, portable files and seals, written from docs/format.md alone; see `second_reader`."""

from __future__ import annotations

import hmac
import sqlite3
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.format.second_reader import Array, Refused, blake, canonical, must, parse, read_kvz, token_ids

# -- logs


@dataclass
class Row:
    segment: bytes
    context: bytes
    anchor: bytes
    digest: bytes
    held: str = ""

    @property
    def says(self) -> dict[str, Any]:
        found: dict[str, Any] = parse(self.context)
        return found


@dataclass
class SessionLog:
    name: str
    rows: list[Row]
    origin: dict[str, Any] | None = None
    names: dict[str, int] = field(default_factory=dict)


def joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def follow(rows: list[Row]) -> tuple[bytes, bytes]:
    """Recompute the chain from the first entry on; return its last anchor and digest."""
    anchor, digest = bytes(8), bytes(32)
    for number, row in enumerate(rows):
        must(canonical(row.says) == row.context, f"writing of entry {number}")
        must(row.says["number"] == number, f"number of entry {number}")
        anchor = blake(joined(anchor, row.segment, row.context), 8)
        digest = blake(joined(digest, row.segment, row.context))
        must((anchor, digest) == (row.anchor, row.digest), f"chain at entry {number}")
        must((row.says["kind"] in ("append", "tokens")) == bool(row.segment), f"kind of entry {number}")
    return anchor, digest


@dataclass
class Segments:
    """Reads segments and checks each against the entry that adds it; `ids` has the tokens up to the end of each."""

    files: dict[str, bytes]
    key: bytes = b""
    ids: dict[str, Array] = field(default_factory=lambda: {"": np.empty(0, "<i8")})

    def check(self, row: Row, held: str) -> None:
        says, name = row.says, row.segment.hex()
        data = self.files[held]
        must(blake(data, key=self.key).hex() == held, "digest of a segment")
        kvz = read_kvz(data)
        states = kvz.header["settings"]["segment"]
        must(held == name or kvz.header["codec"] == "tokens", "what stands for a segment")
        must(states["parent"] == says["after"], "segment before")
        must([states["start"], states["start"] + kvz.tokens] == says["tokens"], "tokens of a segment")
        before = self.ids[states["parent"]]
        must(len(before) == states["start"], "start of a segment")
        found = np.concatenate([before, token_ids(kvz)])
        must(blake(found.astype("<i8").tobytes(), 16, self.key).hex() == says["prefix"], "prefix")
        self.ids[name] = found


def read_store(folder: Path) -> dict[str, SessionLog]:
    """Read a store that is not encrypted: each session's log, checked, with every segment that it holds."""
    tables = sqlite3.connect(f"file:{folder / 'store.db'}?mode=ro", uri=True)
    tables.row_factory = sqlite3.Row
    try:
        must(tables.execute("PRAGMA application_id").fetchone()[0] == 0x4B565A53, "application id")
        must(tables.execute("SELECT COUNT(*) FROM keyring").fetchone()[0] == 0, "encrypted")
        held = {
            bytes(row["digest"]): bytes(row["tokens"] or row["digest"])
            for row in tables.execute("SELECT * FROM segments")
        }
        logs, digests = dict[int, SessionLog](), dict[int, bytes]()
        reader = Segments({})
        for session in tables.execute("SELECT * FROM sessions ORDER BY id").fetchall():
            log = SessionLog(session["name"] or "", [])
            logs[session["id"]] = log
            asked = "SELECT * FROM entries WHERE id >= ? AND id < ? ORDER BY id"
            span = (session["id"] << 32, (session["id"] + 1) << 32)
            for number, row in enumerate(tables.execute(asked, span).fetchall()):
                must(row["id"] == (session["id"] << 32) + number, "place of an entry")
                log.rows.append(stored_entry(row, session["id"], digests, held))
            must(follow(log.rows) == (session["anchor"], session["digest"]), "end of the chain")
            must(len(log.rows) == session["entries"], "number of entries")
            for row in log.rows:
                if row.held:
                    reader.files[row.held] = (folder / "segments" / row.held[:2] / row.held[2:]).read_bytes()
                    reader.check(row, row.held)
            if session["origin"] is not None:
                asked = "SELECT origin FROM origins WHERE digest = ?"
                text = tables.execute(asked, (session["origin"],)).fetchone()["origin"].encode()
                must(blake(text).hex() == session["origin"], "digest of an origin")
                log.origin = parse(text)
                must(log.origin is not None and log.origin["next_position"] == 0, "origin")
        for row in tables.execute("SELECT * FROM names"):
            says = logs[row["session"]].rows[row["number"]].says
            must((says["kind"], says.get("name")) == ("checkpoint", row["name"]), "name of a checkpoint")
            logs[row["session"]].names[row["name"]] = row["number"]
        return {log.name: log for log in logs.values() if log.name}
    finally:
        tables.close()


def stored_entry(row: sqlite3.Row, session: int, digests: dict[int, bytes], held: dict[bytes, bytes]) -> Row:
    segment = bytes(row["segment"] or b"")
    file = held[segment].hex() if row["held"] else ""
    found = Row(segment, row["context"].encode(), row["anchor"], row["digest"], file)
    parent = row["parent"]
    if parent is not None:
        parent = parent & 0xFFFFFFFF if parent >> 32 == session else digests[parent].hex()
    columns = {"kind": row["kind"], "parent": parent, "tokens": [row["start"], row["end"]]}
    must(found.says | columns == found.says, "columns of an entry")
    digests[row["id"]] = found.digest
    return found


# -- a session outside its store


def read_portable(path: Path, secret: bytes | None = None) -> list[SessionLog]:
    """Read a portable file: the logs of the head, the session's own the last one.

    `secret` is the key, 32 bytes, of an encrypted one.
    """
    with zipfile.ZipFile(path) as archive:
        must(all(one.compress_type == zipfile.ZIP_STORED for one in archive.infolist()), "compression")
        members = {name: archive.read(name) for name in archive.namelist()}
        must(len(members) == len(archive.namelist()), "members")
    key = b""
    if secret is not None:
        key, members = decrypted(members, secret)
    head = parse(members.pop("head.json"))
    must((head["format"], head["version"]) == ("kvcompress.session", 1), "format")
    must(head["sequence"] == 0, "sequence")
    pieces = {name: data for name, data in members.items() if name.startswith("logs/")}
    segments = {name: data for name, data in members.items() if name.startswith("segments/")}
    must(len(pieces) + len(segments) == len(members), "another member")
    logs, ends = [], dict[str, int]()
    reader = Segments({name.removeprefix("segments/"): data for name, data in segments.items()}, key)
    for told in head["logs"]:
        log = SessionLog(told["name"], [], told["origin"])
        for index, (digest, last) in enumerate(told["pieces"]):
            log.rows += piece_of(pieces.pop(f"logs/{digest}"), digest, 256 * index, key)
            must(log.rows[-1].digest.hex() == last, "last entry of a piece")
        must(len(log.rows) == told["entries"], "number of entries")
        must(follow(log.rows)[1].hex() == told["digest"], "end of the chain")
        for number, row in enumerate(log.rows):
            parent = row.says["parent"]
            before = 0 if parent is None else ends[parent if isinstance(parent, str) else log.rows[parent].digest.hex()]
            must(row.says["tokens"][0] == before and (not isinstance(parent, int) or parent < number), "parent")
            ends[row.digest.hex()] = row.says["tokens"][1]
            if row.held:
                reader.check(row, row.held)
        logs.append(log)
    must(not pieces, "a piece that nothing leads to")
    must(logs[-1].name == head["session"], "name")
    return logs


def piece_of(data: bytes, digest: str, first: int, key: bytes) -> list[Row]:
    must(blake(data, key=key).hex() == digest, "digest of a piece")
    says = parse(data)
    must(set(says) == {"first", "entries"} and says["first"] == first and len(says["entries"]) <= 256, "piece")
    return [
        Row(bytes.fromhex(segment), context.encode(), bytes.fromhex(anchor), bytes.fromhex(digest), held)
        for segment, context, anchor, digest, held in says["entries"]
    ]


# -- encrypted files


def decrypted(members: dict[str, bytes], secret: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return the key of digests, and the members of an encrypted file as they are in a plain one."""
    ring = open_keyring(parse(members.pop("keyring.json")), secret)
    key = bytes.fromhex(ring["digest_key"])
    roots = {int(epoch): bytes.fromhex(root) for epoch, root in ring["roots"].items()}
    found = {}
    for name, data in members.items():
        must(name != "head.json", "a readable head")
        bound = blake(b"head.bin", key=key) if name == "head.bin" else bytes.fromhex(name.rpartition("/")[2])
        found["head.json" if name == "head.bin" else name] = open_object(data, bound, roots)
    return key, found


def open_keyring(held: dict[str, Any], secret: bytes) -> dict[str, Any]:
    must(held["format"] == "kvcompress-keyring-1" and held["kdf"]["name"] == "hkdf-sha256", "keyring")
    derived = expanded(secret, b"kvcompress store wrap", 48, bytes.fromhex(held["kdf"]["salt"]))
    must(derived[32:].hex() == held["check"], "wrong key")
    about = canonical({name: value for name, value in held.items() if name != "ring"})
    ring: dict[str, Any] = parse(unsealed(derived[:32], held["nonce"], bytes.fromhex(held["ring"]), about))
    return ring


def open_object(data: bytes, bound: bytes, roots: dict[int, bytes]) -> bytes:
    must(data[:8] == b"\x89KVE\r\n\x1a\n", "object")
    version, epoch, size = struct.unpack_from("<IIQ", data, 8)
    must(version == 1 and epoch in roots, "version or epoch")
    key, at, found = expanded(roots[epoch], b"kvcompress store objects", 32), 24, b""
    for index in range(max(1, -(-size // (16 << 20)))):
        end = at + 12 + min(16 << 20, size - len(found)) + 16
        about = data[:24] + bound + index.to_bytes(8, "little")
        found += unsealed(key, data[at : at + 12].hex(), data[at + 12 : end], about)
        at = end
    must(at == len(data) and len(found) == size, "length of an object")
    return found


def expanded(secret: bytes, info: bytes, size: int, salt: bytes = b"") -> bytes:
    """HKDF with SHA-256, RFC 5869."""
    pseudorandom = hmac.digest(salt or bytes(32), secret, "sha256")
    block, found, count = b"", b"", 0
    while len(found) < size:
        count += 1
        block = hmac.digest(pseudorandom, block + info + bytes([count]), "sha256")
        found += block
    return found[:size]


def unsealed(key: bytes, nonce: str, data: bytes, about: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(bytes.fromhex(nonce), data, about)
    except InvalidTag as error:
        raise Refused("tag") from error


# -- seals


def check_seal(data: bytes, rows: list[Row]) -> None:
    """Compare an unsigned or a signed seal with a log; the signature itself is not looked at."""
    seal = parse(data)
    must(seal["format"] == "kvcompress-seal-1", "format")
    sealed = rows[: seal["count"]]
    must(len(sealed) == seal["count"] > 0, "number of entries")
    anchor, digest = follow(sealed)
    must((anchor.hex(), digest.hex()) == (seal["anchor"], seal["digest"]), "end of the chain")
    log = b"".join(joined(row.segment, row.context) for row in sealed)
    start, end = seal["log_bytes"]
    must(0 <= start <= end == len(log) and end - start <= 262_144, "range")
    must(fnv1a64(log[start:end]) == seal["fnv1a64"], "FNV-1a")
    codecs = {(row.says["codec"], row.says.get("codec_fingerprint", "")) for row in sealed if "codec" in row.says}
    must(blake(canonical(sorted(map(list, codecs)))).hex() == seal["codec"], "codecs")


def fnv1a64(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) % (1 << 64)
    return f"{value:016x}"
