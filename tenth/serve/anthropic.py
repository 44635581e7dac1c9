"""`/v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients call them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenth.api.answer_text import CLOSE, OPEN
from tenth.api.bodies import Asked, Rules
from tenth.errors import RequestError
from tenth.serve.answering import Job, begin
from tenth.serve.anthropic_answer import Blocks, anthropic_form, message_body, usage_body
from tenth.serve.anthropic_body import chat_body
from tenth.serve.body import read_body
from tenth.serve.problems import FORMS, HttpProblem
from tenth.serve.service import Service, service_of
from tenth.serve.sse import EventStream, sse

PATH = "/v1/messages"
FORMS[PATH] = anthropic_form

router = APIRouter()
_FIELDS: dict[str, Any] = {
    "model": {"type": "string"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    "system": {"type": "string"},
    "stop_sequences": {"type": "array", "items": {"type": "string"}},
    "tools": {"type": "array", "items": {"type": "object"}},
    "tool_choice": {"type": "object"},
    "thinking": {"type": "object"},
    "stream": {"type": "boolean"},
}


def _described(*required: str) -> dict[str, Any]:
    """What `/openapi.json` says of a body; it is judged by the code that reads it."""
    schema = {"type": "object", "properties": _FIELDS, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_PING = sse({"type": "ping"}, event="ping")
_NAMES = ((".function.parameters", ".input_schema"), (".function", ""))  # as OpenAI's bodies say it, and Anthropic's


@router.post(PATH, openapi_extra=_described("model", "max_tokens", "messages"))
async def messages(request: Request) -> Response:
    """Answer a message."""
    body = await read_body(request)
    service = service_of(request)
    service.check(body)
    chat = chat_body(body, thinks=_thinks(service))
    try:
        job = await begin(request, "chat.completion", chat)
    except RequestError as error:
        raise type(error)(_in_their_words(str(error))) from None
    if job.asked[0].stream:
        return EventStream(request, job, _frames(job, body), failed=_failed, heartbeat=_PING)
    blocks = Blocks()
    await job.whole(request, lambda said: blocks.take(said.event))
    usage = job.usage()
    message = message_body(job.id, job.model, usage_body(usage))
    return JSONResponse(message | {"content": blocks.content} | blocks.stop(usage, body["max_tokens"]))


@router.post(f"{PATH}/count_tokens", openapi_extra=_described("model", "messages"))
async def count_tokens(request: Request) -> Response:
    """Count the tokens of a message's prompt."""
    service, body = service_of(request), await read_body(request)
    service.check(body)
    chat = chat_body(body, thinks=_thinks(service), counting=True)
    try:
        asked = await service.apart(lambda: Asked.read(service.model, "chat.completion", chat, Rules()))
    except RequestError as error:
        raise type(error)(_in_their_words(str(error))) from None
    return JSONResponse({"input_tokens": len(asked.request.prompt)})


def _thinks(service: Service) -> bool:
    return all(service.model.tokenizer.token_id(tag) is not None for tag in (OPEN, CLOSE))


def _in_their_words(message: str) -> str:
    """What is wrong with a tool, in the names of the body that was sent."""
    if not re.match(r"tools\[\d+\]", message):
        return message
    for ours, theirs in _NAMES:
        message = message.replace(ours, theirs, 1)
    return message


async def _frames(job: Job, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
    def framed(events: list[dict[str, Any]]) -> bytes:
        return b"".join(sse(event, event=event["type"]) for event in events)

    begun = message_body(job.id, job.model, usage_body(job.usage(), begun=True))
    yield framed([{"type": "message_start", "message": begun}]) + _PING
    blocks = Blocks()
    async for found in job.rounds():
        events = [event for said in found for event in blocks.take(said.event)]
        if events:
            yield framed(events)
    usage = job.usage()
    delta = {"type": "message_delta", "delta": blocks.stop(usage, body["max_tokens"]), "usage": usage_body(usage)}
    yield framed([delta, {"type": "message_stop"}])


def _failed(problem: HttpProblem) -> bytes:
    return sse(anthropic_form(problem), event="error")
