"""`GET /v1/live` of a cluster: the front listens to all replicas while somebody looks on, and adds up what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress

import aiohttp

from tenth.cluster.live_merge import Heard, merged
from tenth.cluster.members import Member, Members
from tenth.serve.sse import sse

PATH = "/v1/live"
_EVERY_S, _FIRST_S, _PAUSE_S = 0.5, 2.0, 0.02
_LONGEST = 1 << 24  # bytes of an event


class LiveView:
    """One viewer, who sees what the replicas show to whom `own` headers name."""

    def __init__(self, session: aiohttp.ClientSession, members: Members, own: Iterable[tuple[bytes, bytes]]) -> None:
        self._session, self._members = session, members
        self._headers = [(name.decode(), value.decode("latin-1")) for name, value in own]
        self._heard = dict[str, tuple[Heard, asyncio.Task[None]]]()

    async def opened(self) -> bool:
        """Whether a replica shows anything; if not, its own answer to the same request says why."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_S):
                self._listen()
                while self._heard and not any(heard.event for heard, _ in self._heard.values()):
                    await asyncio.sleep(_PAUSE_S)
                    self._heard = {name: pair for name, pair in self._heard.items() if not pair[1].done()}
        return any(heard.event for heard, _ in self._heard.values())

    async def frames(self, stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Events, until the front stops."""
        while not stopping():
            self._listen()
            found = [(event, heard.node) for heard, _ in self._heard.values() if (event := heard.take()) is not None]
            if found:
                yield sse(merged(*zip(*found, strict=True)))
            await asyncio.sleep(_EVERY_S)

    def close(self) -> None:
        """The viewer has left."""
        for _, task in self._heard.values():
            task.cancel()

    def _listen(self) -> None:
        """To those who are ready; no more to those whose stream has ended."""
        self._heard = {name: pair for name, pair in self._heard.items() if not pair[1].done()}
        for member in self._members.ready():
            if member.id not in self._heard:
                heard = Heard(member.news.node)
                self._heard[member.id] = heard, asyncio.create_task(self._hear(member, heard))

    async def _hear(self, member: Member, heard: Heard) -> None:
        with suppress(aiohttp.ClientError, OSError, ValueError):
            async with self._session.get(member.news.url + PATH, headers=self._headers) as reply:
                if reply.status != 200:
                    return
                held = b""
                async for piece in reply.content.iter_any():
                    held += piece
                    *events, held = held.split(b"\n\n")
                    for event in events:
                        if event.startswith(b"data: ") and len(event) < _LONGEST:
                            said = json.loads(event[6:])
                            if "phase" not in said:  # an error: the stream ends
                                return
                            heard.hear(said)
