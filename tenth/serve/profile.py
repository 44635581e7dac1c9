"""`GET /v1/routing/profile`: what the routers have decided since the server was ready, as a file (docs/profile.md)."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenth.routing.profile_file import to_bytes
from tenth.routing.window import RoutingWindow
from tenth.serve.problems import HttpProblem
from tenth.serve.service import service_of

PATH = "/v1/routing/profile"
router = APIRouter()


@router.get(PATH)
async def profile(request: Request) -> Response:
    """The routing profile of all that was computed: safetensors."""
    service = service_of(request)
    window = service.window
    if window is None:
        raise HttpProblem(404, f"there is no routing profile: {service.unwatched}")
    content = await asyncio.to_thread(_content, window)
    name = 'attachment; filename="routing.profile"'
    return Response(content, media_type="application/octet-stream", headers={"content-disposition": name})


def _content(window: RoutingWindow) -> bytes:
    return to_bytes(window.profile())
