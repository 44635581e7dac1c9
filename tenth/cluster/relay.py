"""One attempt at a request: it goes to a replica, and what comes back goes to the client.

A stream is passed on in whole events, anything else once it is there in full. So the first byte that a client sees is
the beginning of an answer, and until then another replica may be asked; behind it, a stream that breaks off gets a last
event that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import aiohttp
from starlette.types import Scope, Send
from yarl import URL

from tenth.cluster.asked import Asked
from tenth.cluster.broken import LOST, STOPPING, last_event
from tenth.cluster.members import Flight
from tenth.cluster.wire import PREFIX
from tenth.serve.problems import HttpProblem
from tenth.serve.trace import record_of

Headers = list[tuple[bytes, bytes]]
_HOP = frozenset(b"connection keep-alive transfer-encoding content-length date server x-request-id request-id".split())
_CACHE = b"x-tenth-cache"  # the one header of ours that clients are shown
_CONNECT_S = 5.0
_REMEMBERED = 4096  # bytes of the events that were sent last


class Again(Exception):
    """Nothing has been sent: another replica may be asked. `answer` is what this one said, if it said anything."""

    def __init__(self, why: str, answer: tuple[int, Headers, bytes] | None = None, *, unheard: bool = False) -> None:
        """`unheard`: the replica cannot have begun."""
        super().__init__(why)
        self.answer, self.unheard = answer, unheard


class Unread(Exception):
    """The client has taken nothing for too long."""


def new_session() -> aiohttp.ClientSession:
    """Connections to replicas; to be made where the event loop runs."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, use_dns_cache=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        auto_decompress=False,
        read_bufsize=1 << 18,
        skip_auto_headers=("accept", "user-agent", "content-type"),
    )


class Relay:
    """A request on its way; `stopping` says whether a cancelled one ends because the front stops."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        asked: Asked,
        send: Send,
        send_seconds: float,
        stopping: Callable[[], bool],
    ) -> None:
        self._session, self._asked, self._send = session, asked, send
        self._send_seconds, self._stopping = send_seconds, stopping
        self._begun, self._last = False, b""

    async def attempt(self, scope: Scope, flight: Flight, own: Iterable[tuple[bytes, bytes]]) -> bool:
        """Ask this flight's replica, with the cluster's `own` headers; whether the answer came to its own end.

        Raises `Again` where nothing was sent, `Unread` where the client takes nothing.
        """
        asked, url = self._asked, URL(flight.member.news.url + self._asked.target, encoded=True)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in (*asked.headers, *own)]
        try:
            request = self._session.request(
                asked.method, url, data=asked.body or None, headers=headers, allow_redirects=False
            )
            async with request as reply:
                stream = reply.content_type == "text/event-stream"
                content = await (self._stream(reply, flight) if stream else reply.read())
            if not stream:  # the client hears the end when the connection to the replica is free again
                await self._whole(reply, content)
            else:
                await self._put(content, last=True)
            return True
        except aiohttp.ClientConnectorError as error:
            raise Again(f"cannot be reached: {error}", unheard=True) from None
        except (aiohttp.ClientError, OSError) as error:
            await self._broken(scope, f"{type(error).__name__}: {error}"[:200], LOST)
        except asyncio.CancelledError:
            task, silent = asyncio.current_task(), flight.member.silent
            if task is None or not (silent or self._stopping()):
                raise
            task.uncancel()
            await self._broken(scope, *(("has fallen silent", LOST) if silent else ("the front stops", STOPPING)))
        return False

    async def _broken(self, scope: Scope, why: str, problem: HttpProblem) -> None:
        """It has broken off."""
        if not self._begun:
            if problem is STOPPING:
                raise problem
            raise Again(why)
        record_of(scope).error, record_of(scope).code = why, problem.code
        await self._put(last_event(self._asked.path, problem, self._last))
        await self._put(b"", last=True)

    async def _whole(self, reply: aiohttp.ClientResponse, content: bytes) -> None:
        headers = _shown(reply)
        full = reply.status == 429 and b'"queue_full"' in content
        if full or (reply.status == 503 and not self._asked.path.startswith("/v1/reviews")):
            raise Again(f"answers {reply.status}", (reply.status, headers, content))
        await self.answer(reply.status, headers, content)

    async def answer(self, status: int, headers: Headers, content: bytes) -> None:
        """Send what a replica has said, in full."""
        self._begun = True
        length = [(b"content-length", str(len(content)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self._put(b"" if self._asked.method == "HEAD" else content, last=True)

    async def _stream(self, reply: aiohttp.ClientResponse, flight: Flight) -> bytes:
        """Pass its events on as they come; what is left at its end."""
        held = b""
        async for piece in reply.content.iter_any():
            held += piece
            end = held.rfind(b"\n\n") + 2
            if end >= 2:
                await self._events(reply, flight, held[:end])
                held = held[end:]
        if not self._begun:
            await self._events(reply, flight, b"")
        return held

    async def _events(self, reply: aiohttp.ClientResponse, flight: Flight, events: bytes) -> None:
        if not self._begun:
            self._begun = True
            flight.begun()
            await self._send({"type": "http.response.start", "status": reply.status, "headers": _shown(reply)})
        self._last = events[-_REMEMBERED:]
        await self._put(events)

    async def _put(self, data: bytes, *, last: bool = False) -> None:
        """Send."""
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            raise Unread from None


def _shown(reply: aiohttp.ClientResponse) -> Headers:
    raw = ((name.lower(), value) for name, value in reply.raw_headers)
    return [(name, value) for name, value in raw if name == _CACHE or not (name in _HOP or name.startswith(PREFIX))]
