"""The application: routes, errors, and what stands around them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Scope

from tenth import __version__
from tenth.errors import TenthError
from tenth.serve import (
    anthropic,
    chat,
    completions,
    console_page,
    embeddings,
    infill,
    live,
    metrics,
    models,
    profile,
    responses,
    reviews,
    tokens,
)
from tenth.serve.guard import Guard, limit_handler
from tenth.serve.hosts import KnownHosts
from tenth.serve.limits import LimitReached
from tenth.serve.metrics import registry_of
from tenth.serve.problems import HttpProblem, answer_of, problem_of, unforeseen
from tenth.serve.service import ServeOptions, Service
from tenth.serve.trace import Record, Trace, record_of

ROUTERS = (
    models.router,
    chat.router,
    anthropic.router,
    completions.router,
    infill.router,
    responses.router,
    embeddings.router,
    tokens.router,
    profile.router,
    live.router,
    reviews.router,
)
_METHODS = ["GET", "POST", "OPTIONS"]
_RATES = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]
_EXPOSED = ["x-request-id", "request-id", "x-tenth-cache", "retry-after", *_RATES]  # to scripts of pages
_ABOUT = "Language models behind the APIs of OpenAI and others. Every answer has an x-request-id."


Door = Callable[[ASGIApp], ASGIApp]
"""What stands around the routes and says who asks (`guard.let_in`)."""


def create_app(service: Service, door: Door | None = None) -> ASGIApp:
    """The ASGI application of a service: the routes, what guards them as far as it was asked for, and the log.

    A `door` of another kind stands in the guard's place.
    """
    app = FastAPI(title="tenth", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    if service.meter is not None:
        app.state.metrics = registry_of(service)
        app.include_router(metrics.router)
    if service.options.console:
        app.include_router(console_page.router)
    app.add_exception_handler(LimitReached, limit_handler)
    app.add_exception_handler(TenthError, _refused)
    app.add_exception_handler(HttpProblem, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _unforeseen)
    public = console_page.PUBLIC if service.options.console else None
    wrapped = Guard(app, service.guards.keys, service.guards.limiter, public) if door is None else door(app)
    return around(wrapped, service.options, None if service.meter is None else service.meter.answered)


def around(app: ASGIApp, options: ServeOptions, told: Callable[[Scope, Record], object] | None) -> ASGIApp:
    """What stands around a guarded application: pages' origins, hosts, the log; `told` hears of every request."""
    if options.origins:
        app = CORSMiddleware(app, options.origins, allow_methods=_METHODS, allow_headers=["*"], expose_headers=_EXPOSED)
    if options.hosts is not None:
        app = KnownHosts(app, options.hosts)
    return Trace(app, told)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, TenthError | HttpProblem)
    body = getattr(request.state, "body", None)
    return answer_problem(request, problem_of(error, body))


async def _unforeseen(request: Request, error: Exception) -> Response:
    return answer_problem(request, unforeseen())


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = tuple((error.headers or {}).items())
    words = {
        404: f"there is nothing at {request.url.path!r:.80}",
        405: f"{request.method} does not go with {request.url.path!r:.80}",
    }
    return answer_problem(
        request, HttpProblem(error.status_code, words.get(error.status_code, error.detail), headers=headers)
    )


def answer_problem(request: Request, problem: HttpProblem) -> Response:
    """An error as an answer."""
    record = record_of(request.scope)
    record.error, record.code = problem.message, problem.code
    content = answer_of(request.url.path, problem)
    return JSONResponse(content, problem.status, problem.all_headers)
