"""`/v1/embeddings`: pooled states of a model that was trained to go on with text, not to compare it.

They group texts by their subject; a model made for embeddings does better.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from torch import Tensor

from tenth.api import body_fields as f
from tenth.api.embed import Pooling, embedding
from tenth.api.model import Model
from tenth.errors import RequestError
from tenth.serve.answering import unless_left
from tenth.serve.body import read_body
from tenth.serve.guard import caller_of
from tenth.serve.openapi import described
from tenth.serve.problems import HttpProblem
from tenth.serve.service import Service, service_of

router = APIRouter()
_KNOWN = {"model", "input", "encoding_format", "dimensions", "pooling", "user"}
_MOST = 2048


@dataclass(frozen=True, slots=True)
class _Asked:
    texts: list[list[int]]
    pooling: Pooling
    base64: bool


@router.post("/v1/embeddings", **described("embeddings"))
async def embed(request: Request) -> Response:
    """Vectors of length one for texts."""
    service, body = service_of(request), await read_body(request)
    service.check(body)
    asked = await service.apart(lambda: _read(service.model, body, service.model_context))
    count, lease = sum(map(len, asked.texts)), caller_of(request.scope).lease
    await lease.set_aside(count, 0)
    lease.used(count, 0)
    vectors = await _within_time(request, service, asked)
    data = [
        {"object": "embedding", "index": number, "embedding": _written(vector_D, asked)}
        for number, vector_D in enumerate(vectors)
    ]
    name = body.get("model") or service.options.names[0]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


async def _within_time(request: Request, service: Service, asked: _Asked) -> list[Tensor]:
    """A server that stops waits for them, as for what it reads."""
    service.reading += 1
    try:
        async with asyncio.timeout(service.options.request_seconds):
            return await unless_left(request, _vectors(service, asked))
    except TimeoutError:
        seconds = service.options.request_seconds
        raise HttpProblem(504, f"the request was not answered within {seconds:g} seconds", "timeout") from None
    finally:
        service.reading -= 1


async def _vectors(service: Service, asked: _Asked) -> list[Tensor]:
    """One after the other: between two, answers that run get a step."""
    return [
        await service.engine.between_steps(partial(embedding, service.model, ids, asked.pooling)) for ids in asked.texts
    ]


def _written(vector_D: Tensor, asked: _Asked) -> str | list[float]:
    if asked.base64:
        return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode()
    return [float(value) for value in vector_D]


def _read(model: Model, body: Mapping[str, Any], context: int | None) -> _Asked:
    for name in body:
        if name not in _KNOWN:
            raise RequestError(f"no field here is named {name!r:.40} (there are: {', '.join(sorted(_KNOWN))})")
    given = {name: value for name, value in body.items() if value is not None}
    if "input" not in given:
        raise RequestError("input is missing: a text, a list of texts, or of lists of token ids must be there")
    if given["input"] == []:
        raise RequestError("input is empty, it must hold at least one text")
    texts = f.several(given["input"])
    if len(texts) > _MOST:
        raise RequestError(f"input holds {len(texts)} texts, there may be {_MOST}")
    pooling, form = given.get("pooling", "last"), given.get("encoding_format", "float")
    if pooling not in ("last", "mean"):
        raise RequestError(f"pooling is {pooling!r:.40}, it must be last or mean")
    if form not in ("float", "base64"):
        raise RequestError(f"encoding_format is {form!r:.40}, it must be float or base64")
    width = model.config.hidden_size
    if f.whole(given, "dimensions", width) != width:
        raise RequestError(f"dimensions is {given['dimensions']}, this model's vectors have {width}")
    ids = [_ids(model, text) for text in texts]
    longest, most = max(map(len, ids)), context or model.config.context_length
    if longest > most or not all(ids):
        raise RequestError(f"input: each text must have between 1 and {most} tokens")
    return _Asked(ids, pooling, form == "base64")


def _ids(model: Model, text: object) -> list[int]:
    if isinstance(text, list) and all(type(token) is int for token in text):
        return text
    if not isinstance(text, str):
        raise RequestError(f"input is {text!r:.40}, it must be a text, a list of texts, or of lists of token ids")
    return model.tokenizer.encode(text, begin=True)
