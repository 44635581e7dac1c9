"""One browser and one server for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.console import stage
from tests.console.contract import Contract
from tests.serve.real import Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with stage.browser() as running:
        yield running


@pytest.fixture(scope="module")
def served(browser: Any) -> Iterator[tuple[Server, Contract]]:
    """A server with the page and what it is built on; asked for behind the browser, so that nothing starts in vain."""
    with pytest.MonkeyPatch.context() as patch, stage.page_server(patch) as (running, made):
        yield running, made[0]
