"""What a replica tells and asks the front."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tenth.cluster.wire import SECRET
from tenth.errors import MachineError

_TRIES, _PAUSE_S = 20, 0.25  # a front that was killed is back within seconds


class ToFront:
    """Connections to it; to be made where the event loop runs, and closed."""

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._headers = url, {SECRET.decode(): secret}
        self._session: aiohttp.ClientSession | None = None

    async def say(self, path: str, *, tries: int = _TRIES, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer; MachineError where the front cannot be reached."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=5)
            self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        for left in reversed(range(tries)):
            try:
                async with self._session.post(self._url + path, json=body) as reply:
                    return reply.status, await reply.json()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                if not left:
                    raise MachineError(f"the front at {self._url} cannot be reached: {error or 'too late'}") from None
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("there is at least one try")

    async def close(self) -> None:
        """No more."""
        if self._session is not None:
            await self._session.close()
