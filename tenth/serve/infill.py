"""`/infill`, as llama.cpp's plugins for editors call it: what stands around the cursor, and other files, to text."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenth.api import body_fields as f
from tenth.api.answer_events import Finish
from tenth.api.bodies import Asked
from tenth.api.fill_in import OtherFile, gap_prompt
from tenth.api.tool_events import ContentText
from tenth.errors import RequestError
from tenth.serve.answering import Job, start
from tenth.serve.body import read_body
from tenth.serve.openapi import described
from tenth.serve.problems import HttpProblem, openai_form
from tenth.serve.readings import Reading
from tenth.serve.service import Service, service_of
from tenth.serve.sse import EventStream, sse

router = APIRouter()
Json = dict[str, Any]
_SAME = set(
    "model temperature top_k top_p min_p seed stop stream logit_bias presence_penalty frequency_penalty cache".split()
)
_OWN = {"input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "repeat_penalty", "response_fields"}
# wishes about how llama.cpp works, without a meaning here
_HINTS = set("id_slot cache_prompt samplers n_indent t_max_prompt_ms t_max_predict_ms n_probs n_cmpl".split())

# as a completion's body says it, and an infill's
_NAMES = (
    ("suffix", "input_suffix"),
    ("repetition_penalty", "repeat_penalty"),
    ("prompt has", "input_prefix, input_suffix and input_extra have"),
)


@router.post("/infill", **described("infill"))
async def infill(request: Request) -> Response:
    """Fill in the gap at a cursor."""
    began = time.perf_counter()
    service, body = service_of(request), await read_body(request)
    service.check(body)
    try:
        asked = await service.apart(lambda: _read(service, body))
    except RequestError as error:
        raise type(error)(_in_their_words(str(error))) from None
    job = await start(request, Reading([asked]))
    if asked.stream:
        return EventStream(request, job, _frames(job, body, began), failed=_failed)
    (whole,) = await job.whole(request)
    assert whole.finish is not None
    content = "" if body.get("n_predict") == 0 else whole.content or ""
    return JSONResponse(_chosen(body, {"content": content, **_end(job, whole.finish, began)}))


async def _frames(job: Job, body: Json, began: float) -> AsyncIterator[bytes]:
    async for said in job.said():
        match said.event:
            case ContentText(text) if body.get("n_predict") != 0:
                yield sse({"content": text, "stop": False})
            case Finish() as finish:
                yield sse(_chosen(body, {"content": "", **_end(job, finish, began)}))


def _failed(problem: HttpProblem) -> bytes:
    return sse(openai_form(problem))


def _end(job: Job, finish: Finish, began: float) -> Json:
    usage, ms = job.usage(), 1000 * (time.perf_counter() - began)
    return {
        "stop": True,
        "stop_type": "limit" if finish.reason == "length" else "word" if finish.stopped_by else "eos",
        "stopping_word": finish.stopped_by or "",
        "model": job.model,
        "tokens_predicted": usage.completion,
        "tokens_evaluated": usage.prompt,
        "tokens_cached": usage.cached,
        "truncated": False,
        "timings": {
            "cache_n": usage.cached,
            "prompt_n": usage.prompt - usage.cached,
            "predicted_n": usage.completion,
            "total_ms": round(ms, 3),
        },
    }


def _chosen(body: Json, found: Json) -> Json:
    """The fields of an answer that were asked for, `a/b` for one inside of another."""
    names = body.get("response_fields")
    if not names:
        return found
    chosen: Json = {}
    for name in names:
        value: Any = found
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            chosen[name] = value
    return chosen


def _in_their_words(message: str) -> str:
    """What is wrong, with the name that the field has here."""
    for ours, theirs in _NAMES:
        if re.match(rf"{ours}[: ]", message):
            return theirs + message.removeprefix(ours)
    return message


def _read(service: Service, body: Mapping[str, Any]) -> Asked:
    for name in body:
        if name not in _SAME | _OWN | _HINTS:
            known = ", ".join(sorted(_SAME | _OWN | _HINTS))
            raise RequestError(f"no field of an infill is named {name!r:.40} (there are: {known})")
    given = {name: value for name, value in body.items() if value is not None}
    fields = given.get("response_fields", [])
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise RequestError(f"response_fields is {fields!r:.40}, it must be a list of names")
    same = {name: given[name] for name in _SAME & given.keys()}
    if "repeat_penalty" in given:
        same["repetition_penalty"] = given["repeat_penalty"]
    count = f.whole(given, "n_predict")
    unbounded = count is None or count < 0
    # 0 asks for the prompt to be in the cache
    same["max_tokens"] = service.rules.context if unbounded else max(count or 0, 1)
    before, behind, begun = (f.text(given, name) for name in ("input_prefix", "input_suffix", "prompt"))
    gap = gap_prompt(service.model.tokenizer, before, behind, begun, _others(given))
    return Asked.read(service.model, "text_completion", same, service.rules, gap)


def _others(given: Mapping[str, Any]) -> list[OtherFile]:
    extra = given.get("input_extra", [])
    if not isinstance(extra, list) or not all(isinstance(one, Mapping) for one in extra):
        raise RequestError(f"input_extra is {extra!r:.40}, it must be a list of objects with filename and text")
    return [OtherFile(f.text(one, "filename", "file"), f.text(one, "text")) for one in extra]
