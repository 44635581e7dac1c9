"""Chats and completions as OpenAI answers them: one JSON object, or a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenth.serve.answering import Job
from tenth.serve.sse import DONE, EventStream, sse


async def answer(request: Request, job: Job, prefix: str) -> Response:
    """What a job's answers are to the client; ids begin with `prefix`."""
    if job.asked[0].stream:
        return EventStream(request, job, _chunks(job, prefix))
    wholes = await job.whole(request)
    return JSONResponse(job.form(prefix).body(job.asked, wholes, job.usage()))


async def _chunks(job: Job, prefix: str) -> AsyncIterator[bytes]:
    form = job.form(prefix)
    opened = set[int]()
    owners = [asked for asked in job.asked for _ in range(asked.request.n)]
    async for round_ in job.rounds():
        frames = []
        for said in round_:
            if said.choice not in opened:
                opened.add(said.choice)
                frames += form.opening(said.choice, owners[said.choice])
            chunk = form.chunk(said)
            frames += [chunk] if chunk is not None else []
        yield b"".join(map(sse, frames))
    if job.asked[0].include_usage:
        yield sse(form.last(job.usage()))
    yield DONE
