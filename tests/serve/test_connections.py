"""Connections: what is left of them when they are gone, however they went."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from tenth.serve.protocol import BoundedProtocol
from tests.serve.proving import proving_model
from tests.serve.real import server
from tests.serve.test_life import until
from tests.serve.wire import Wire, request


def connections() -> int:
    gc.collect()
    return sum(type(one) is BoundedProtocol for one in gc.get_objects())


@pytest.mark.parametrize("reset", [True, False])
def test_nothing_is_left_of_a_connection(tmp_path: Path, reset: bool) -> None:
    """uvicorn's timer for idle connections would hold those that were reset for 75 seconds, with their last request."""

    async def ask(port: int) -> None:
        for _ in range(5):
            wire = await Wire.open(port)
            await wire.send(request("GET", "/version", None, name="one", key=None))
            assert await wire.head() == 200
            await wire.whole()
            wire.leave(reset=reset)

    with server(proving_model(tmp_path)) as running:
        asyncio.run(ask(running.port))
        until(lambda: not connections(), 5)
