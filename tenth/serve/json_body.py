"""The body of a request: read within limits of size and time, and judged as JSON before all else."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.requests import ClientDisconnect, Request

from tenth.serve.problems import HttpProblem

DEEPEST = 100
_SURROGATE = (b"\\ud", b"\\uD")


async def json_body(request: Request, most: int, seconds: float) -> dict[str, Any]:
    """The object that a body holds, of at most so many bytes; HttpProblem 400, 408, 413, 415 for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HttpProblem(415, f"content-type is {kind or 'not there'!r:.60}, it must be application/json")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise HttpProblem(415, f"content-encoding is {encoding!r:.40}, bodies must come as they are")
    return read_json(await raw_body(request, most, seconds))


async def raw_body(request: Request, most: int, seconds: float) -> bytes:
    """A body of at most so many bytes, as it is; HttpProblem 408, 413 where it is longer or does not come."""
    try:
        async with asyncio.timeout(seconds):
            return await _read(request, most)
    except TimeoutError:
        raise HttpProblem(408, f"the body did not come within {seconds:g} seconds", "timeout") from None


def read_json(raw: bytes) -> dict[str, Any]:
    """A JSON object; HttpProblem for what is none, for numbers that are none, and for texts that are no Unicode."""
    try:
        body = json.loads(raw.decode(), parse_constant=_no_number, parse_float=_float)
    except UnicodeDecodeError as error:
        raise HttpProblem(400, f"the body is not UTF-8, at byte {error.start}", "invalid_json") from None
    except RecursionError:
        raise HttpProblem(400, f"the body is nested more than {DEEPEST} deep", "invalid_json") from None
    except ValueError as error:
        raise HttpProblem(400, f"the body is not JSON: {error}", "invalid_json") from None
    if not isinstance(body, dict):
        raise HttpProblem(400, f"the body must be a JSON object, not {_name(body)}", "invalid_json")
    _check(body, texts=any(mark in raw for mark in _SURROGATE))
    return body


async def _read(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    raw = bytearray()
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > most:
                raise _too_large(most)
    except ClientDisconnect:
        raise HttpProblem(499, "the client left before its request had come", "client_closed_request") from None
    return bytes(raw)


def _too_large(most: int) -> HttpProblem:
    return HttpProblem(
        413, f"the body is larger than {most:,} bytes", "body_too_large", headers=(("connection", "close"),)
    )


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value


def _check(body: Any, *, texts: bool) -> None:
    """HttpProblem where it is nested too deep, or, where `texts` are looked at, has half a surrogate pair."""
    level, depth = [body], 0
    while level:
        if depth > DEEPEST:
            raise HttpProblem(400, f"the body is nested more than {DEEPEST} deep", "invalid_json")
        inner = []
        for value in level:
            if isinstance(value, dict):
                inner += [item for item in value.values() if isinstance(item, dict | list) or texts]
                inner += value.keys() if texts else ()
            elif isinstance(value, list):
                inner += [item for item in value if isinstance(item, dict | list) or texts]
            elif isinstance(value, str):
                _check_text(value)
        level, depth = inner, depth + 1


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise HttpProblem(400, f"a text in the body has half a surrogate pair, {half}", "invalid_json") from None


def _name(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
