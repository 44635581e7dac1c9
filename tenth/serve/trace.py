"""Around every request: its id, its line in the log, and the last resort where something fails that nobody foresaw."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenth.api.answer_body import Usage
from tenth.serve.problems import answer_of, unforeseen

_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_QUIET = ("/health", "/ready")  # asked every few seconds
log = logging.getLogger("tenth.serve.access")

Ending = Literal["left", "unread", "timeout", "stopping", "error"]
"""Why an answer has no end of its own: its client left, or took nothing, time was up, the server stopped or failed."""


@dataclass(slots=True)
class Record:
    """What the log says of a request; `cache`, whether its answer had been kept, is a header of the answer too.

    `reasons` are those of answers that came to their end, `ending` is why others did not.
    """

    id: str
    status: int = 0
    usage: Usage | None = None
    reasons: list[str] = field(default_factory=list)
    ending: Ending = "error"
    error: str | None = None
    prompt: str | None = None
    code: str | None = None
    start: float = field(default_factory=time.perf_counter)
    key: str | None = None
    cache: str | None = None


def record_of(scope: Scope) -> Record:
    """The record of a request; one of its own where `Trace` does not stand around the routes."""
    record: Record = scope.setdefault("state", {}).setdefault("record", Record(uuid.uuid4().hex))
    return record


class Trace:
    """ASGI middleware; the outermost."""

    def __init__(self, app: ASGIApp, told: Callable[[Scope, Record], object] | None = None) -> None:
        """`told` hears of every request when it is over."""
        self._app, self._told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(request_id(scope["headers"]))
        scope.setdefault("state", {})["record"] = record
        whole = False

        async def noted(message: Message) -> None:
            nonlocal whole
            whole = whole or (message["type"] == "http.response.body" and not message.get("more_body", False))
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *id_headers(scope["path"], record.id)]
                if record.cache is not None:
                    message["headers"].append((b"x-tenth-cache", record.cache.encode()))
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            record.error = f"{type(error).__name__}: {error}"
            logging.getLogger("tenth.serve").exception("request %s failed", record.id)
            if not record.status:
                await _fail(scope, noted)
            elif not whole:
                raise  # the server closes the connection, so that nobody takes half an answer for a whole one
        finally:
            _write(scope, record, time.perf_counter() - record.start)
            if self._told is not None:
                self._told(scope, record)


async def _fail(scope: Scope, send: Send) -> None:
    content = json.dumps(answer_of(scope["path"], unforeseen())).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own where it is a plain word, else a new one."""
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def id_headers(path: str, name: str) -> list[tuple[bytes, bytes]]:
    """A request's id as headers of its answer: clients of Anthropic's look for a name of their own."""
    names = [b"x-request-id", b"request-id"] if path.startswith("/v1/messages") else [b"x-request-id"]
    return [(header, name.encode()) for header in names]


def _write(scope: Scope, record: Record, seconds: float) -> None:
    quiet = scope["path"] in _QUIET and record.status in (200, 503)
    level = logging.DEBUG if quiet else logging.INFO if record.status < 500 else logging.WARNING
    if not log.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "request_id": record.id,
        "client": (scope.get("client") or ("-",))[0],
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "ms": round(1000 * seconds, 1),
    }
    if record.usage is not None:
        usage = record.usage
        fields |= {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "cached_tokens": usage.cached}
        fields["finish_reason"] = ",".join(record.reasons) or record.ending
    fields |= {
        name: value for name in ("key", "cache", "error", "prompt") if (value := getattr(record, name)) is not None
    }
    log.log(level, "request", extra={"fields": fields})
