"""The statements that make the store's tables, see `kvcompress.store.database`; each version adds to the one before."""

from __future__ import annotations

_FIRST = """
CREATE TABLE store (id INTEGER PRIMARY KEY CHECK (id = 0), generation INTEGER NOT NULL, stored_bytes INTEGER NOT NULL,
    added_bytes INTEGER NOT NULL, written_bytes INTEGER NOT NULL, settings TEXT NOT NULL);
CREATE TABLE origins (digest TEXT PRIMARY KEY, origin TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (id INTEGER PRIMARY KEY, name TEXT UNIQUE, created REAL NOT NULL, used REAL NOT NULL,
    head INTEGER, entries INTEGER NOT NULL, anchor BLOB NOT NULL, digest BLOB NOT NULL, origin TEXT,
    fence INTEGER NOT NULL, writer TEXT);
CREATE TABLE entries (id INTEGER PRIMARY KEY, parent INTEGER, kind TEXT NOT NULL, start INTEGER NOT NULL,
    end INTEGER NOT NULL, segment BLOB, context TEXT NOT NULL, anchor BLOB NOT NULL, digest BLOB NOT NULL,
    held INTEGER NOT NULL);
CREATE TABLE names (session INTEGER NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (session, name)) WITHOUT ROWID;
CREATE TABLE segments (digest BLOB PRIMARY KEY, parent BLOB NOT NULL, end INTEGER NOT NULL, prefix BLOB NOT NULL,
    bytes INTEGER NOT NULL, uses INTEGER NOT NULL, created REAL NOT NULL, used REAL NOT NULL,
    tokens BLOB) WITHOUT ROWID;
CREATE INDEX segments_after ON segments (parent, end);
INSERT INTO store VALUES (0, 0, 0, 0, 0, '{}');
"""
_SECOND = """
CREATE TABLE keyring (id INTEGER PRIMARY KEY CHECK (id = 0), epoch INTEGER NOT NULL, ring TEXT NOT NULL)"""
_THIRD = """
CREATE TEMPORARY TABLE moved AS SELECT * FROM segments ORDER BY created;
DROP TABLE segments;
CREATE TABLE segments (digest BLOB NOT NULL PRIMARY KEY, parent BLOB NOT NULL, end INTEGER NOT NULL,
    prefix BLOB NOT NULL, bytes INTEGER NOT NULL, uses INTEGER NOT NULL, created REAL NOT NULL, used REAL NOT NULL,
    tokens BLOB);
CREATE INDEX segments_after ON segments (ifnull(substr(parent, 1, 8), x''), end);
INSERT INTO segments SELECT * FROM moved;
DROP TABLE moved"""
MIGRATIONS = (_FIRST, _SECOND, _THIRD)
"""Scripts that lead from each version of the tables to the next one."""

AFTER = "ifnull(substr(parent, 1, 8), x'') = ifnull(substr(:parent, 1, 8), x'') AND parent = :parent"
"""Finds the segments after a parent: its whole digest in the index would take three times the pages. SQLite knows no
part of an empty digest, which is that of no parent."""
