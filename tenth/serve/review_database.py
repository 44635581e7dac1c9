"""Where reviews lie: SQLite, or PostgreSQL, behind one way to run statements.

Statements are written once, with `?` for values, and all values are numbers or ASCII. A transaction that writes is
alone in the table, in SQLite by the file's lock, in PostgreSQL by the table's: a queue that people work off has no
need for more, and what was read within cannot have changed when it is written.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from tenth.errors import MachineError, RequestError
from tenth.serve.database import connected

Rows = list[tuple[Any, ...]]
Execute = Callable[[str, Sequence[object]], Rows]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tenth_reviews (
    id TEXT COLLATE {bytewise} PRIMARY KEY, digest TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
    version INTEGER NOT NULL, decided DOUBLE PRECISION, size INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS tenth_reviews_state ON tenth_reviews (state, id);
"""
_WAIT_S = 5.0  # for another's transaction, and for a server that does not answer
_FORMS = "a file, sqlite:///path/to/file, or postgresql://user@host/database"


class Database(Protocol):
    """Transactions one at a time, for any thread; MachineError where one fails, and then nothing of it has happened."""

    name: str
    """For people: never with a password."""

    def transaction(self, *, write: bool = False) -> AbstractContextManager[Execute]:
        """What runs a statement within: gives the rows, if it has any."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


def check_address(url: str) -> None:
    """RequestError where no database can be meant. Nothing of it is repeated but its scheme: it may hold a password."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        if not url.strip() or "\0" in url:
            raise RequestError(f"--reviews is empty, it must be {_FORMS}")
    elif scheme not in ("sqlite", "postgresql", "postgres"):
        raise RequestError(f"--reviews begins with {scheme + mark!r:.40}, it must be {_FORMS}")
    elif scheme == "sqlite" and (not rest.startswith("/") or rest.strip("/") == "" or set(rest) & set("?#\0")):
        raise RequestError(f"--reviews is {url!r:.200}, it must be {_FORMS}")


def opened(url: str) -> Database:
    """The database at an address; RequestError for what is none, MachineError where it cannot be had."""
    check_address(url)
    scheme, mark, rest = url.partition("://")
    if not mark:
        return SqliteDatabase(Path(url).expanduser().absolute())
    return SqliteDatabase(Path("/" + unquote(rest).lstrip("/"))) if scheme == "sqlite" else PostgresDatabase(url)


class SqliteDatabase:
    """One file with a write-ahead log, which servers of one machine may share."""

    def __init__(self, path: Path) -> None:
        self.name, self._lock = str(path), threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            schema = _SCHEMA.format(bytewise="BINARY")
            self._database = connected(path, schema, _WAIT_S, "synchronous=FULL", "secure_delete=ON")
        except (sqlite3.Error, OSError) as error:
            raise MachineError(f"{path}: the reviews cannot be opened: {error}") from None

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Execute]:
        """As `Database` says."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield lambda statement, values: self._database.execute(statement, values).fetchall()
                self._database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                raise MachineError(f"{self.name}: {error}") from None
            finally:
                if self._database.in_transaction:
                    with suppress(sqlite3.Error):
                        self._database.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


class PostgresDatabase:
    """One connection, made anew where it is lost. A transaction that has begun is never tried twice."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise MachineError(
                "reviews in PostgreSQL need the package psycopg: pip install 'tenth[postgres]'"
            ) from None
        self._psycopg, self._url, self._lock = psycopg, url, threading.Lock()
        try:
            said = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # whose words may hold the password
            raise RequestError(
                "--reviews is no address of PostgreSQL: postgresql://user@host/database is one"
            ) from None
        self._password = str(said.get("password") or "")
        self.name = (
            f"PostgreSQL, database {said.get('dbname') or 'of the user'} at {said.get('host') or 'this machine'}"
        )
        try:
            self._connection = self._connected()
            with self._connection.transaction():
                self._make_table()
        except psycopg.Error as error:
            raise self._problem(error) from None

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Execute]:
        """As `Database` says."""
        with self._lock:
            try:
                self._begin("READ COMMITTED" if write else "REPEATABLE READ READ ONLY")
                if write:
                    self._connection.execute("LOCK TABLE tenth_reviews IN SHARE ROW EXCLUSIVE MODE")
                yield self._execute
                self._connection.execute("COMMIT")
            except self._psycopg.Error as error:
                self._undo()
                raise self._problem(error) from None
            except BaseException:
                self._undo()
                raise

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _connected(self) -> Any:
        return self._psycopg.connect(
            self._url,
            autocommit=True,
            prepare_threshold=None,  # a pooler between would give the next statement to another connection
            client_encoding="UTF8",
            connect_timeout=int(_WAIT_S),
            tcp_user_timeout=int(2000 * _WAIT_S),
        )

    def _make_table(self) -> None:
        """Only where there is none: a user who may not make tables can be given one."""
        if self._connection.execute("SELECT to_regclass('tenth_reviews')").fetchone() == (None,):
            self._connection.execute("SELECT pg_advisory_xact_lock(838485)")  # two that begin at once
            self._connection.execute(_SCHEMA.format(bytewise='"C"'))

    def _begin(self, how: str) -> None:
        limits = f"SET LOCAL statement_timeout = {int(1000 * _WAIT_S)}"
        try:
            self._connection.execute(f"BEGIN ISOLATION LEVEL {how}")
        except self._psycopg.OperationalError:  # it was lost since the last time: nothing has begun
            self._connection.close()
            self._connection = self._connected()
            self._connection.execute(f"BEGIN ISOLATION LEVEL {how}")
        self._connection.execute(limits)

    def _execute(self, statement: str, values: Sequence[object]) -> Rows:
        cursor = self._connection.execute(statement.replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description is not None else []

    def _undo(self) -> None:
        try:
            self._connection.execute("ROLLBACK")
        except self._psycopg.Error:  # the server has undone it with the connection
            self._connection.close()

    def _problem(self, error: Exception) -> MachineError:
        words = str(error).strip().partition("\n")[0] or type(error).__name__
        words = words.replace(self._password, "***") if self._password else words
        return MachineError(f"{self.name}: {words}")
