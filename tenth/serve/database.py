"""SQLite files that the servers of a machine share."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def connected(path: Path, schema: str, wait_s: float, *pragmas: str) -> sqlite3.Connection:
    """A connection in autocommit mode, for any thread, to a file with a write-ahead log, made where it is not there.

    Others' transactions are waited for so many seconds; only this user may read the file. sqlite3.Error, OSError.
    """
    with _alone_in(path.parent):
        database = sqlite3.connect(path, wait_s, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", *pragmas):
            database.execute(f"PRAGMA {pragma}")
        database.executescript(schema)
    return database


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time: SQLite does not wait for another that is just turning the log on."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
