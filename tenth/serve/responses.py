"""`/v1/responses`, without a memory: all of the input comes each time, and no response is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenth.serve.answering import Job, begin
from tenth.serve.body import read_body
from tenth.serve.openapi import described
from tenth.serve.problems import HttpProblem
from tenth.serve.responses_body import chat_body
from tenth.serve.responses_events import ResponseEvents
from tenth.serve.sse import EventStream, sse

router = APIRouter()


@router.post("/v1/responses", **described("responses"))
async def respond(request: Request) -> Response:
    """Answer with items: thinking, text, calls of functions."""
    body = await read_body(request)
    job = await begin(request, "chat.completion", chat_body(body))
    events = ResponseEvents(job.form("resp_"), body)

    def failed(problem: HttpProblem) -> bytes:
        last = events.failed(problem)
        return sse(last, last["type"])

    if job.asked[0].stream:
        return EventStream(request, job, _frames(job, events), failed=failed)
    await job.whole(request, lambda said: events.take(said.event))
    return JSONResponse(events.body(job.usage()))


async def _frames(job: Job, events: ResponseEvents) -> AsyncIterator[bytes]:
    yield b"".join(sse(event, event["type"]) for event in events.begin())
    async for round_ in job.rounds():
        found = [event for said in round_ for event in events.take(said.event)]
        yield b"".join(sse(event, event["type"]) for event in found)
    last = events.end(job.usage())
    yield sse(last, last["type"])
