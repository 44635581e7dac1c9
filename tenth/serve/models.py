"""What is served, and how the server is: `/v1/models`, `/version`, `/health`, `/ready`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenth import __version__
from tenth.serve.service import Service, service_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The names that the model goes by."""
    service = service_of(request)
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.options.names]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """One of them."""
    service = service_of(request)
    service.check_name(name)
    return JSONResponse(_model(service, name))


@router.get("/version")
async def version() -> Response:
    """The version of this program."""
    return JSONResponse({"version": __version__})


@router.get("/health")
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """Whether the process lives: 200 from the moment it listens, until its engine has died (503: start it again)."""
    service = service_of(request)
    if service.failure is not None:
        return JSONResponse({"status": "failed", "phase": service.phase}, 503)
    return JSONResponse({"status": "alive", "phase": service.phase})


@router.get("/ready")
@router.head("/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    """Whether it takes requests: 200 behind loading and warming up, 503 before, and while it stops."""
    service = service_of(request)
    phase = "failed" if service.failure is not None else service.phase
    headers = {} if phase == "ready" else {"retry-after": "5"}
    return JSONResponse({"status": phase}, 200 if phase == "ready" else 503, headers)


def _model(service: Service, name: str) -> dict[str, Any]:
    own = {"id": name, "object": "model", "created": service.started, "owned_by": "tenth"}
    return {**own, "root": service.options.names[0], "parent": None, "max_model_len": service.model_context}
