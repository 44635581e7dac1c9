"""Server-sent events: frames as they come, a sign of life in silence, an end for clients who leave or do not read."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tenth.errors import TenthError
from tenth.serve.answering import left
from tenth.serve.problems import HttpProblem, openai_form, problem_of
from tenth.serve.service import Service
from tenth.serve.trace import Ending, record_of

_GONE: dict[Ending, str] = {"left": "the client left", "unread": "the client does not read"}
DONE = b"data: [DONE]\n\n"
ALIVE = b": still at work\n\n"
log = logging.getLogger("tenth.serve")


def sse(content: Any, event: str | None = None) -> bytes:
    """One event with JSON."""
    name = f"event: {event}\n" if event is not None else ""
    return f"{name}data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def openai_failed(problem: HttpProblem) -> bytes:
    """The last events of a stream of OpenAI's that broke off."""
    return sse(openai_form(problem)) + DONE


class Streamed(Protocol):
    """What events are of: a `Job`, or somebody who looks on."""

    @property
    def service(self) -> Service:
        """Whose options tell how long a client may take nothing."""

    @property
    def found(self) -> bool:
        """Whether all events are there already."""

    def close(self) -> None:
        """It is over."""


class EventStream(Response):
    """The frames of a job as a stream; `failed` makes the last frame where they break off with an error."""

    def __init__(
        self,
        request: Request,
        job: Streamed,
        frames: AsyncIterator[bytes],
        *,
        failed: Callable[[HttpProblem], bytes] = openai_failed,
        heartbeat: bytes = ALIVE,
    ) -> None:
        self._request, self._job, self._frames, self._failed, self._alive = request, job, frames, failed, heartbeat
        self._last, self._sending = time.monotonic(), False
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type="text/event-stream"
        )
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the frames end, the client leaves, or takes nothing for too long."""
        if self._job.found:
            await self._at_once(scope, send)
        else:
            await self._as_they_come(scope, receive, send)

    async def _at_once(self, scope: Scope, send: Send) -> None:
        """An answer that is there: nobody watches whether the client leaves."""
        try:
            async with asyncio.timeout(self._job.service.options.send_seconds):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._write(send)
        except TimeoutError:
            _note(scope, "unread")
        finally:
            self._job.close()

    async def _as_they_come(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = list[asyncio.Task[None]]()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            tasks += [asyncio.create_task(one) for one in (self._write(send), left(receive), self._beat(send))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                _note(scope, "left" if tasks[1].done() else "unread")
        finally:
            self._job.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:  # type: ignore[type-var]
            try:
                async for frame in frames:
                    await self._send(send, frame)
            except (TenthError, HttpProblem) as error:
                problem = problem_of(error)
                record_of(self._request.scope).error = problem.message
                await self._send(send, self._failed(problem))
            except Exception as error:
                log.exception("request %s failed", record_of(self._request.scope).id)
                record_of(self._request.scope).error = f"{type(error).__name__}: {error}"
                await self._send(send, self._failed(HttpProblem(500, "the server failed in the middle of the answer")))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        """A sign of life in silence; returns where the client takes nothing."""
        options = self._job.service.options
        while True:
            pause = options.send_seconds if self._sending else options.heartbeat_seconds
            silent = time.monotonic() - self._last
            if silent < pause:
                await asyncio.sleep(pause - silent)
            elif self._sending:
                return
            else:
                try:
                    async with asyncio.timeout(options.send_seconds):
                        await self._send(send, self._alive)
                except TimeoutError:
                    return

    async def _send(self, send: Send, frame: bytes) -> None:
        self._last, self._sending = time.monotonic(), True
        await send({"type": "http.response.body", "body": frame, "more_body": True})
        self._last, self._sending = time.monotonic(), False


def _note(scope: Scope, ending: Ending) -> None:
    record_of(scope).ending, record_of(scope).error = ending, _GONE[ending]
