"""The books that limits are kept in: one SQLite file, write-ahead log, for all servers of a machine.

A request is a row of `charges` from its beginning until its minute is over and it has ended; days and months are sums
in `totals`. What a killed server had set aside stays charged: its tokens may have been computed. Its requests are no
longer running once the lock that it held is free, which the kernel sees to.
"""

from __future__ import annotations

import fcntl
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenth.errors import MachineError
from tenth.serve.database import connected

_SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, at REAL NOT NULL, tokens INTEGER NOT NULL,
    day TEXT NOT NULL, owner TEXT
);
CREATE INDEX IF NOT EXISTS charges_key ON charges (key, at);
CREATE TABLE IF NOT EXISTS totals (
    key TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (key, day)
) WITHOUT ROWID;
"""
_WAIT_S = 5.0  # for another server's transaction; they take a tenth of a millisecond, and everybody waits along

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one key: times and tokens of the window's requests, oldest first; how many run; tokens of day and month."""

    requests: tuple[float, ...]
    tokens: tuple[tuple[float, int], ...]
    running: int
    day: int
    month: int


class Books:
    """Rows of charges and totals; every change between `transaction`'s begin and end, by one thread at a time."""

    def __init__(self, path: Path, window_s: float) -> None:
        self._path, self._window_s, self._lock = path, window_s, threading.RLock()
        self._owner = secrets.token_hex(8)
        self._owed = list[tuple[int, int]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = connected(path, _SCHEMA, _WAIT_S)
        except sqlite3.Error as error:
            raise MachineError(f"{path}: the books of limits cannot be opened: {error}; move the file away") from None
        with self.transaction():  # where others look for locks that are free: never between making and locking
            self._held = self._lock_file(self._owner).open("w")
            fcntl.flock(self._held, fcntl.LOCK_EX)
            self.end_those_of_the_dead()

    def close(self) -> None:
        """Close the file and give up the lock; what runs has ended."""
        with self.transaction():
            self._end_those_of(self._owner)
            self._held.close()
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is read and written within happens at once, for every thread and process; nothing after an error."""
        with self._lock, self._named_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                owed = list(self._owed)
                for number, tokens in owed:
                    self.charge(number, tokens)
                    self._end(number)
                yield
                self._database.execute("COMMIT")
                del self._owed[: len(owed)]
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise MachineError(f"{self._path}: the books of limits cannot be kept: {error}") from None

    def spent(self, key: str, now: float, *, without: int | None = None) -> Spent:
        """What a key has spent at this time, but for one charge."""
        with self._lock:
            window = self._rows(
                "SELECT at, tokens FROM charges WHERE key = ? AND at > ? AND id IS NOT ? ORDER BY at",
                (key, now - self._window_s, without),
            )
            running = self._rows("SELECT COUNT(*) FROM charges WHERE key = ? AND owner IS NOT NULL", (key,))
            day = _day(now)
            totals = dict(self._rows("SELECT day, tokens FROM totals WHERE key = ? AND day >= ?", (key, day[:7])))
            own = dict(self._rows("SELECT day, tokens FROM charges WHERE id IS ?", (without,))) if without else {}
        left = {one: tokens - own.get(one, 0) for one, tokens in totals.items()}
        times = tuple(at for at, _ in window)
        return Spent(times, tuple(window), running[0][0], left.get(day, 0), sum(left.values()))

    def begin(self, key: str, now: float) -> int:
        """A request without tokens so far; its number."""
        old = "DELETE FROM charges WHERE key = ? AND at <= ? AND owner IS NULL"
        self._database.execute(old, (key, now - self._window_s))
        new = "INSERT INTO charges (key, at, tokens, day, owner) VALUES (?, ?, 0, ?, ?)"
        cursor = self._database.execute(new, (key, now, _day(now), self._owner))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def charge(self, number: int, tokens: int) -> None:
        """A request comes to so many tokens, in the minute and on the day in which it began."""
        ((key, day, before),) = self._rows("SELECT key, day, tokens FROM charges WHERE id = ?", (number,))
        self._database.execute("UPDATE charges SET tokens = ? WHERE id = ?", (tokens, number))
        self._database.execute(
            "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens",
            (key, day, tokens - before),
        )

    def settle(self, number: int, tokens: int) -> None:
        """A request has ended and came to so many; where that cannot be written now, the next transaction does it."""
        with self._lock:
            self._owed.append((number, tokens))
            try:
                with self.transaction():
                    pass
            except MachineError as error:
                if len(self._owed) == 1:
                    log.error("%s: what requests have used is written later", error)

    def _end(self, number: int) -> None:
        self._database.execute("UPDATE charges SET owner = NULL WHERE id = ?", (number,))

    def end_those_of_the_dead(self) -> None:
        """End the requests of servers whose locks are free."""
        prefix = self._lock_file("").name
        with_locks = {
            path.name.removeprefix(prefix) for path in self._path.parent.iterdir() if path.name.startswith(prefix)
        }
        with_rows = {owner for (owner,) in self._rows("SELECT DISTINCT owner FROM charges WHERE owner IS NOT NULL", ())}
        for owner in (with_locks | with_rows) - {self._owner}:
            if _is_free(self._lock_file(owner)):
                self._end_those_of(owner)

    def _end_those_of(self, owner: str) -> None:
        self._database.execute("UPDATE charges SET owner = NULL WHERE owner = ?", (owner,))
        self._lock_file(owner).unlink(missing_ok=True)

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self._database.execute(query, values).fetchall()

    def _lock_file(self, owner: str) -> Path:
        return self._path.with_name(f"{self._path.name}-server-{owner}")


def _is_free(path: Path) -> bool:
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()
