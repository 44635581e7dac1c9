"""`GET /v1/live`: how the server is, twice a second, for those who look on (docs/server.md, Live)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenth.serve.guard import caller_of
from tenth.serve.problems import HttpProblem, openai_form
from tenth.serve.service import Service, service_of
from tenth.serve.sse import EventStream, sse

PATH = "/v1/live"
KEY_GONE = "the key is valid no more"
router = APIRouter()
_DESCRIBED = {"description": "Snapshots until somebody leaves.", "content": {"text/event-stream": {}}}


class Viewer:
    """Somebody who looks on; with keys, of the requests only at those of the own one."""

    found = False  # events are still to come

    def __init__(self, service: Service, tenant: str | None) -> None:
        self.service, self._tenant = service, tenant
        self._ticker, self._open = service.live.enter(), True

    async def frames(self) -> AsyncIterator[bytes]:
        """The newest look whenever the one before was taken: a slow viewer misses some. HttpProblem where it fails."""
        number = 0
        while (tick := await self._ticker.after(number)) is not None:
            number = tick.number
            keys = self.service.guards.keys
            if keys is not None and self._tenant is not None and not keys.holds(self._tenant):
                raise HttpProblem(401, KEY_GONE, "invalid_api_key")
            yield tick.frame(self._tenant)

    def close(self) -> None:
        """It has left. Again does nothing."""
        if self._open:
            self._open = False
            self.service.live.leave()


@router.get(PATH, response_class=Response, responses={200: _DESCRIBED})
async def live(request: Request) -> Response:
    """A stream of snapshots: experts, requests, cache, speed."""
    service = service_of(request)
    if service.phase in ("draining", "stopped"):
        raise service.closed()
    tenant = None if service.guards.keys is None else caller_of(request.scope).tenant
    viewer = Viewer(service, tenant)
    return EventStream(request, viewer, viewer.frames(), failed=lambda problem: sse(openai_form(problem)))
