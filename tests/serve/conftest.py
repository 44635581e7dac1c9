"""Databases for reviews: every test that asks for one runs with each kind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.serve.postgres import Postgres, postgres

_NUMBERS = count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def reviews_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without anything in it."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/reviews/queue.db"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.new_database(f"test{next(_NUMBERS)}")
