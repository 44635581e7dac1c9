"""The body of a request to this server, noted for its errors and, where it is wanted, in the log."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from tenth.serve.json_body import json_body
from tenth.serve.service import service_of
from tenth.serve.trace import record_of


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent, as the privacy filter leaves it; HttpProblem, RequestError where there is none."""
    service = service_of(request)
    options, privacy = service.options, service.guards.privacy
    body = await json_body(request, options.body_bytes, options.body_seconds)
    if privacy.on:
        body = await service.apart(lambda: privacy.body(body))
    request.state.body = body
    if options.log_prompts:
        words = {name: body[name] for name in ("messages", "prompt", "suffix", "input", "system") if name in body}
        record_of(request.scope).prompt = json.dumps(words, ensure_ascii=False)
    return body
