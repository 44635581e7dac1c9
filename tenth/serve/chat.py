"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenth.serve.answering import begin
from tenth.serve.body import read_body
from tenth.serve.openai_answer import answer
from tenth.serve.openapi import described

router = APIRouter()


@router.post("/v1/chat/completions", **described("chat"))
async def chat(request: Request) -> Response:
    """Answer a chat."""
    job = await begin(request, "chat.completion", await read_body(request))
    return await answer(request, job, "chatcmpl-")
