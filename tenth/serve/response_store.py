"""Where kept answers lie: one SQLite file, or Redis.

The file is a table of our own rather than a library's: what those write is pickled, or they do not bound their size.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tenth.errors import ConfigError, MachineError
from tenth.serve.database import connected

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, made REAL NOT NULL, used INTEGER NOT NULL, size INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_used ON answers (used);
CREATE TABLE IF NOT EXISTS clock (at INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO clock SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM clock);
"""
_ROW = 128  # bytes of a row beside its value
_WAIT_S = 5.0
_REDIS_WAIT_S = 2.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class FileStore:
    """One SQLite file, whole after a kill at any time; those unused for longest go when it is full.

    A file that SQLite cannot read is set aside and begun anew: it was only a cache.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes, self._lock = path, max_bytes, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = self._opened()

    def get(self, key: bytes, oldest: float) -> bytes | None:
        """A value; what is older is deleted."""

        def read(database: sqlite3.Connection) -> bytes | None:
            row = database.execute("SELECT made, value FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            if row[0] < oldest:
                _delete(database, key)
                return None
            database.execute("UPDATE clock SET at = at + 1")
            database.execute("UPDATE answers SET used = (SELECT at FROM clock) WHERE key = ?", (key,))
            return bytes(row[1])

        return self._transaction(read)

    def put(self, key: bytes, value: bytes, now: float) -> int:
        """Keep a value, and delete others until it fits."""

        def write(database: sqlite3.Connection) -> int:
            _delete(database, key)
            size, evicted = len(value) + _ROW, 0
            while database.execute("SELECT bytes FROM clock").fetchone()[0] + size > self._max_bytes:
                oldest = database.execute("SELECT key FROM answers ORDER BY used LIMIT 1").fetchone()
                if oldest is None:
                    return evicted
                _delete(database, oldest[0])
                evicted += 1
            database.execute("UPDATE clock SET at = at + 1, bytes = bytes + ?", (size,))
            row = (key, now, size, value)
            database.execute("INSERT INTO answers SELECT ?1, ?2, at, ?3, ?4 FROM clock", row)
            return evicted

        return self._transaction(write)

    def drop(self, key: bytes) -> None:
        """Delete a value."""
        self._transaction(lambda database: _delete(database, key))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _transaction(self, act: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return self._tried(act)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked by another, or no room on the disk
                    raise MachineError(f"{self._path}: {error}") from None
                self._database.close()
                self._set_aside(error)
                self._database = self._opened()
                return self._tried(act)

    def _tried(self, act: Callable[[sqlite3.Connection], T]) -> T:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            result = act(self._database)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return result

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except (sqlite3.Error, OSError) as error:
            raise MachineError(f"{self._path}: the response cache cannot be opened: {error}") from None

    def _connected(self) -> sqlite3.Connection:
        open_file = partial(connected, self._path, _SCHEMA, _WAIT_S, "secure_delete=ON")  # what is deleted is gone
        try:
            return open_file()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            return open_file()

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        log.warning("%s: is begun anew, what was there is kept as .damaged: %s", self._path, error)
        self._path.replace(self._path.with_name(self._path.name + ".damaged"))
        for end in ("-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)


def _delete(database: sqlite3.Connection, key: bytes) -> None:
    database.execute(
        "UPDATE clock SET bytes = bytes - (SELECT coalesce(sum(size), 0) FROM answers WHERE key = ?)", (key,)
    )
    database.execute("DELETE FROM answers WHERE key = ?", (key,))


class RedisStore:
    """A Redis server, for several machines; values leave it by themselves when they are too old."""

    def __init__(self, url: str, max_age_s: float) -> None:
        try:
            import redis
        except ImportError:
            raise MachineError(
                "a response cache in Redis needs the package redis: pip install 'tenth[redis]'"
            ) from None
        self._errors, self._max_age_ms = redis.RedisError, max(1, int(max_age_s * 1000))
        try:
            self._redis: Any = redis.Redis.from_url(
                url, socket_timeout=_REDIS_WAIT_S, socket_connect_timeout=_REDIS_WAIT_S
            )
        except ValueError as error:
            raise ConfigError(f"the response cache's address is no address of Redis: {error}") from None

    def get(self, key: bytes, oldest: float) -> bytes | None:
        """A value; Redis has deleted what is older."""
        found: bytes | None = self._tried(lambda: self._redis.get(_name(key)))
        return found

    def put(self, key: bytes, value: bytes, now: float) -> int:
        """Keep a value; how many others go is Redis's affair."""
        self._tried(lambda: self._redis.set(_name(key), value, px=self._max_age_ms))
        return 0

    def drop(self, key: bytes) -> None:
        """Delete a value."""
        self._tried(lambda: self._redis.delete(_name(key)))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except self._errors as error:
            raise MachineError(f"Redis: {type(error).__name__}") from None  # its texts may hold the address's password


def _name(key: bytes) -> str:
    return f"tenth:answer:{key.hex()}"
