"""The ledger: what was built, measured, refused and failed, append-only, in SQLite.

Rows are events of a kind under a content key. Nothing is ever changed or deleted; a later event of the same kind and
key stands for the newer state. A process may be killed at any moment, and several may write at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from portolan.errors import DiskFull, PortolanError, UsageError

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_key ON events (kind, key, id);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
PRAGMA user_version = 1;
COMMIT;
"""
_BUSY_SECONDS = 30.0
_LEAST_FREE = 2**20


class Ledger:
    """An append-only store of events.

    Args:
        path: the database file; made if it is not there.
        writable: False opens an existing one for reading only.

    Raises:
        UsageError: the file cannot be made or is not a ledger.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        if not writable and not path.is_file():
            raise UsageError(
                f"there is no study in `{path.parent}`", hint="portolan optimize MODEL --study DIR makes one"
            )
        with self._explained():
            # check_same_thread: compile threads append too; sqlite3 serialises its calls.
            self._db = sqlite3.connect(
                path if writable else _read_only(path), uri=not writable, timeout=_BUSY_SECONDS,
                isolation_level=None, check_same_thread=False,
            )  # fmt: skip
            if writable:
                self._create()
            # FULL: an event is on disk before it counts, even when the power fails.
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > 1:
            raise UsageError(f"`{path}` was written by a newer Portolan", hint="pip install -U portolan")

    def append(self, kind: str, key: str, data: Mapping[str, Any]) -> int:
        """Adds one event, on disk before this returns; its number."""
        text = json.dumps(data, allow_nan=True)
        with self._explained():
            row = self._db.execute(
                "INSERT INTO events (at, kind, key, data) VALUES (?, ?, ?, ?)", (time.time(), kind, key, text)
            )
        return int(row.lastrowid or 0)

    def latest(self, kind: str, key: str) -> dict[str, Any] | None:
        """The newest event of that kind under `key`."""
        with self._explained():
            row = self._db.execute(
                "SELECT data FROM events WHERE kind = ? AND key = ? ORDER BY id DESC LIMIT 1", (kind, key)
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def all(self, kind: str, key: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Every event of a kind, oldest first, as (key, data)."""
        query = "SELECT key, data FROM events WHERE kind = ? AND (? IS NULL OR key = ?) ORDER BY id"
        with self._explained():
            rows = self._db.execute(query, (kind, key, key)).fetchall()
        return [(row[0], json.loads(row[1])) for row in rows]

    def number(self, kind: str, key: str, data: Mapping[str, Any]) -> int:
        """The place of `key` among the kind's keys, from 0; appends `data` under it if it is new."""
        with self._explained(), self._transaction():
            keys = [
                row[0]
                for row in self._db.execute(
                    "SELECT key FROM events WHERE kind = ? GROUP BY key ORDER BY MIN(id)", (kind,)
                )
            ]
            if key in keys:
                return keys.index(key)
            self.append(kind, key, data)
            return len(keys)

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def _create(self) -> None:
        exists = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'no_delete'").fetchone()
        if exists is None:
            self._log_ahead()
            self._db.executescript(_SCHEMA)

    def _log_ahead(self) -> None:
        """Sets WAL mode. SQLite waits for other processes in everything but this: two may be making the file."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self.path, error) from error


def _read_only(path: Path) -> str:
    """The address to open a ledger for reading at, also where nothing can be written.

    A database in WAL mode needs two files beside it to be read; where they cannot be made, and none holds anything,
    nobody can be writing, and it may be read as a file that does not change.
    """
    address = path.absolute().as_uri()
    wal = path.with_name(f"{path.name}-wal")
    still = not os.access(path.parent, os.W_OK) and not (wal.is_file() and wal.stat().st_size)
    return f"{address}?{'immutable=1' if still else 'mode=ro'}"


def _explain(path: Path, error: sqlite3.Error) -> PortolanError:
    text = str(error)
    # SQLite calls it an I/O error when the index of its log does not fit.
    if "is full" in text or ("disk I/O" in text and shutil.disk_usage(path.parent).free < _LEAST_FREE):
        return DiskFull(f"the disk is full: `{path}` could not be written")
    if "readonly" in text or "unable to open" in text:
        return UsageError(f"`{path}` cannot be written", hint="name a folder that can be written: --study DIR")
    if "not a database" in text or "malformed" in text:
        return UsageError(f"`{path}` is not a ledger", hint="name another folder: --study DIR")
    return PortolanError(f"the ledger `{path}` failed: {text}")
