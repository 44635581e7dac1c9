"""The application in front: it picks a replica for a request, asks another one where that fails, and adds up."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tenth import __version__
from tenth.cluster import wire
from tenth.cluster.asked import Asked, read_asked
from tenth.cluster.broken import STOPPING
from tenth.cluster.front_leases import OpenLeases
from tenth.cluster.front_live import PATH as LIVE
from tenth.cluster.front_live import LiveView
from tenth.cluster.front_metrics import merged_metrics
from tenth.cluster.members import Member, Members
from tenth.cluster.prefixes import digests
from tenth.cluster.relay import Again, Relay, Unread
from tenth.cluster.routing import Policy, choose
from tenth.errors import TenthError
from tenth.serve.answering import unless_left
from tenth.serve.guard import Caller, caller_of
from tenth.serve.json_body import raw_body
from tenth.serve.keys import Keys
from tenth.serve.live import KEY_GONE
from tenth.serve.problems import HttpProblem, answer_of, openai_form, problem_of
from tenth.serve.service import ServeOptions
from tenth.serve.sse import sse
from tenth.serve.trace import record_of

Phase = Literal["waiting", "ready", "draining"]
PATIENCE_S = 30.0
"""So long a request waits for a replica where there is none: the time that a new one takes to come."""
_LOSSES = 2  # replicas that may go away under a request: one more, and the request may be what ends them
_PAUSE_S = 0.2  # between two rounds of attempts
log = logging.getLogger("tenth.serve")


@dataclass
class FrontCounts:
    """Since the front began: who was given requests and why, and what went wrong."""

    given: Counter[str] = field(default_factory=Counter)  # by what decided: prefix or load
    matched_bytes: int = 0
    retries: int = 0
    broken: int = 0
    http: Counter[tuple[str, int]] = field(default_factory=Counter)


class Front:
    """The ASGI application behind the guard. `draining` takes no new work; `cut` ends what is left."""

    def __init__(
        self,
        options: ServeOptions,
        members: Members,
        leases: OpenLeases,
        policy: Policy,
        secret: str,
        keys: Keys | None = None,
    ) -> None:
        self.options, self.members, self.leases, self.policy, self.secret = options, members, leases, policy, secret
        self._keys = keys
        self.counts, self.draining = FrontCounts(), False
        self._session: aiohttp.ClientSession | None = None
        self._chance, self._work = random.Random(), set[asyncio.Task[None]]()
        self._cut = False

    def open(self, session: aiohttp.ClientSession) -> None:
        """Begin, where the event loop runs."""
        self._session = session

    @property
    def inside(self) -> int:
        """Requests at work."""
        return len(self._work)

    @property
    def phase(self) -> Phase:
        """`waiting` while no replica is ready."""
        return "draining" if self.draining else "ready" if self.members.ready() else "waiting"

    def cut(self) -> None:
        """End everything now; streams get a last event that says so."""
        self._cut = True
        for task in self._work:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        try:
            own = await self._own(request)
            if own is None:
                await self._pass_on(request, send)
            else:
                await own(scope, receive, send)
        except (TenthError, HttpProblem) as error:
            problem = problem_of(error)
            if problem.status == 499:  # nobody is there who could be answered
                return
            record_of(scope).error, record_of(scope).code = problem.message, problem.code
            content = answer_of(scope["path"], problem)
            await JSONResponse(content, problem.status, problem.all_headers)(scope, receive, send)

    async def _own(self, request: Request) -> Response | None:
        """What the front says by itself; None for what replicas are asked."""
        path, reads = request.scope["path"], request.method in ("GET", "HEAD")
        if path == "/health" and reads:
            return JSONResponse({"status": "alive", "phase": self.phase, "replicas": len(self.members.ready())})
        if path == "/ready" and reads:
            ready = self.phase == "ready"
            return JSONResponse({"status": self.phase}, 200 if ready else 503, {} if ready else {"retry-after": "5"})
        if path == "/version" and reads:
            return JSONResponse({"version": __version__})
        if path == "/metrics" and reads and self.options.metrics:
            assert self._session is not None, "opened before it serves"
            content, kind = await merged_metrics(self._session, self, request.headers.get("accept", ""))
            return Response(content, headers={"content-type": kind})
        return None

    async def _pass_on(self, request: Request, send: Send) -> None:
        if self.draining:
            raise HttpProblem(503, "the server is stopping and takes no new requests", "stopping", retry_after=5)
        if self.inside >= self.options.queue * max(1, len(self.members.by_id)):
            raise HttpProblem(429, "the server is full: too many requests are inside", "queue_full", retry_after=1)
        caller = caller_of(request.scope)
        if (request.method, request.scope["path"]) == ("GET", LIVE) and await self._shown(request, caller, send):
            return
        asked = await read_asked(request, await raw_body(request, self.options.body_bytes, self.options.body_seconds))
        async with self.leases.open(caller.lease) as lease:
            own = self._own_headers(request, caller, lease)
            await unless_left(request, self._counted(request, asked, own, send))

    async def _shown(self, request: Request, caller: Caller, send: Send) -> bool:
        """All replicas to one who looks on, until that one leaves; False where they show nothing."""
        assert self._session is not None, "opened before it serves"
        view = LiveView(self._session, self.members, self._own_headers(request, caller, None))
        try:
            if not await view.opened():
                return False
            await unless_left(request, self._frames(view, caller, send))
            return True
        finally:
            view.close()

    async def _frames(self, view: LiveView, caller: Caller, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with suppress(TimeoutError):
            async for frame in view.frames(lambda: self.draining):
                valid = self._keys is None or self._keys.holds(caller.tenant)
                body = frame if valid else sse(openai_form(HttpProblem(401, KEY_GONE, "invalid_api_key")))
                async with asyncio.timeout(self.options.send_seconds):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                if not valid:
                    break
        await send({"type": "http.response.body", "body": b""})

    async def _counted(self, request: Request, asked: Asked, own: list[tuple[bytes, bytes]], send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._work.add(task)
        try:
            await self._answered(request, asked, own, send)
        except asyncio.CancelledError:
            if not self._cut:
                raise
            task.uncancel()
            raise STOPPING from None
        except Unread:
            record_of(request.scope).ending, record_of(request.scope).error = "unread", "the client does not read"
        finally:
            self._work.discard(task)

    def _own_headers(self, request: Request, caller: Caller, lease: str | None) -> list[tuple[bytes, bytes]]:
        found = [
            (wire.SECRET, self.secret.encode()),
            (wire.CALLER, caller.name.encode()),
            (wire.TENANT, caller.tenant.encode()),
            (b"x-request-id", record_of(request.scope).id.encode()),
        ]
        if caller.reviewer:
            found.append((wire.REVIEWER, b"1"))
        return [*found, (wire.LEASE, lease.encode())] if lease is not None else found

    async def _answered(self, request: Request, asked: Asked, own: list[tuple[bytes, bytes]], send: Send) -> None:
        """Ask one replica after the other, each once a round, until one answers."""
        assert self._session is not None, "opened before it serves"
        relay = Relay(self._session, asked, send, self.options.send_seconds, lambda: self._cut)
        found = digests(asked.text, caller_of(request.scope).tenant)
        tried, end, said, losses = set[str](), time.monotonic() + PATIENCE_S, "", 0
        while time.monotonic() < end:
            ready = [member for member in self.members.ready() if member.id not in tried]
            if not ready:
                tried.clear()
                await self.members.change(_PAUSE_S)
                continue
            member, matched = self._chosen(ready, found)
            try:
                with self.members.flight(member, max(len(asked.text) - matched, 0), asyncio.current_task()) as flight:
                    whole = await relay.attempt(request.scope, flight, own)
                self.counts.broken += not whole
                return
            except Again as again:
                said = f"{member.id} {again}"
                self._failed(member, again)
                if again.answer is not None and (again.answer[0] == 429 and len(ready) == 1):
                    await relay.answer(*again.answer)  # full, as all others are
                    return
                losses += again.answer is None and not again.unheard
                if losses > (_LOSSES if asked.repeatable else 0):
                    raise HttpProblem(502, "the replica that was asked has gone", "replica_lost") from None
                tried.add(member.id)
        log.warning("no replica has answered within %g seconds; the last one: %s", PATIENCE_S, said or "none is there")
        raise HttpProblem(503, "no replica is ready to answer", "not_ready", retry_after=5)

    def _chosen(self, ready: list[Member], found: list[bytes]) -> tuple[Member, int]:
        choice = choose(ready, found, self.policy, self._chance)
        choice.member.seen.add(found)
        self.counts.given["prefix" if self.policy == "prefix" and choice.matched else "other"] += 1
        self.counts.matched_bytes += choice.matched
        return choice.member, choice.matched

    def _failed(self, member: Member, again: Again) -> None:
        self.counts.retries += 1
        if again.unheard:
            self.members.lost(member)
        if again.answer is None:
            log.warning("replica %s: %s", member.id, again)
