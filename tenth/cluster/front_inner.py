"""The front's inner address, for replicas alone: their announcements, and the leases that their requests run on."""

from __future__ import annotations

import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tenth.cluster import far_log
from tenth.cluster.front_leases import OpenLeases
from tenth.cluster.members import Members
from tenth.cluster.wire import ANNOUNCE, LEASES, News, knows_secret
from tenth.serve.json_body import json_body
from tenth.serve.limits import LimitReached

_MOST, _SECONDS = 1 << 18, 10.0
log = logging.getLogger("tenth.serve")


class Inner:
    """The ASGI application; whoever does not know the secret is refused before anything is read."""

    def __init__(self, members: Members, leases: OpenLeases, secret: str) -> None:
        self._members, self._leases, self._secret = members, leases, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a replica."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if not knows_secret(scope["headers"], self._secret) or request.method != "POST":
            answer: Response = JSONResponse({}, 403)
        else:
            answer = self._told(scope["path"], await json_body(request, _MOST, _SECONDS))
        await answer(scope, receive, send)

    def _told(self, path: str, body: dict[str, Any]) -> Response:
        if path == ANNOUNCE:
            return self._announced(News(**body))
        if path == far_log.LOG:
            far_log.write(body["replica"], body["lines"])
            return JSONResponse({})
        _, _, rest = path.partition(f"{LEASES}/")
        name, _, what = rest.partition("/")
        if what not in ("reserve", "used"):
            return JSONResponse({}, 404)
        say = self._leases.reserve if what == "reserve" else self._leases.used
        try:
            return JSONResponse({}, 200 if say(name, body["prompt"], body["completion"]) else 404)
        except LimitReached as reached:
            return JSONResponse({"message": str(reached), "limit": reached.limit, "wait_s": reached.wait_s}, 429)

    def _announced(self, news: News) -> Response:
        member = self._members.by_id.get(news.id)
        before = member.news.phase if member is not None else None
        if news.phase != "stopped":
            self._members.heard(news)
        elif member is not None:
            self._members.lost(member)
        if before != news.phase:
            log.info("replica %s at %s is %s (model %d)", news.id, news.url, news.phase, news.generation)
        return JSONResponse({})
