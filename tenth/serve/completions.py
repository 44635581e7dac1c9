"""`/v1/completions`: a text is continued, or with a `suffix` the gap before it is filled in."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenth.serve.answering import begin
from tenth.serve.body import read_body
from tenth.serve.openai_answer import answer
from tenth.serve.openapi import described

router = APIRouter()


@router.post("/v1/completions", **described("completion"))
async def complete(request: Request) -> Response:
    """Continue texts."""
    job = await begin(request, "text_completion", await read_body(request))
    return await answer(request, job, "cmpl-")
