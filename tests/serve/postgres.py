"""A PostgreSQL for tests: made in a folder, reached by a socket there, gone behind them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534  # PostgreSQL refuses to run as root


class Postgres:
    """A server that can be stopped and started again; `url` is its address."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._user = _NOBODY if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://tenth@/postgres?host={folder}"
        if self._user is not None:
            os.chown(folder, self._user, self._user)
        options = ("-D", str(folder / "data"), "-U", "tenth", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale")
        subprocess.run([programs / "initdb", *options], check=True, capture_output=True, **self._as_user)

    @property
    def _as_user(self) -> dict[str, object]:
        plain = {"cwd": self._folder, "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}}
        return plain if self._user is None else {**plain, "user": self._user, "group": self._user, "extra_groups": []}

    def start(self) -> None:
        """Begin to answer; AssertionError with its log where it does not."""
        log = self._folder / "log"
        with log.open("ab") as file:
            options = ("-D", str(self._folder / "data"), "-k", str(self._folder), "-F", "-c", "listen_addresses=")
            self._process = subprocess.Popen(
                [self._programs / "postgres", *options], stdout=file, stderr=file, **self._as_user
            )
        import psycopg

        end = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, log.read_text()[-2000:]
                assert self._process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.05)

    def stop(self) -> None:
        """End at once, as in a power cut, with all connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def new_database(self, name: str) -> str:
        """Its address."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tenth@/{name}?host={self._folder}"


def _programs() -> Path | None:
    """The folder of `initdb`: the system's, or that of the package `pgserver`."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    try:
        import pgserver
    except ImportError:
        return None
    return Path(pgserver.__file__).parent / "pginstall" / "bin"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running one; the test is skipped where there is none."""
    pytest.importorskip("psycopg", reason="the package psycopg is not installed (tenth[test] has it)")
    programs = _programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL: neither the system's, nor the package pgserver")
    with tempfile.TemporaryDirectory(prefix="tenth-postgres-") as name:  # not tmp_path: another user must get there
        server = Postgres(programs, Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()
