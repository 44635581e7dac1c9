"""The door: ASGI middleware that asks for a key before anything else looks at a request, and keeps its limits.

Everything needs a key but a short list of paths in exactly their spelling: what a path means is decided by routers,
mounts and proxies, so a guard that looked for what to protect could be talked around.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenth.errors import MachineError
from tenth.serve.keys import Key, Keys
from tenth.serve.limits import Lease, Limiter, LimitReached, Limits, Standing
from tenth.serve.trace import record_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
_CALLER = "tenth.caller"
_UNCOUNTED = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by the name of the key, and what the request may use and has used.

    `tenant` is the key's own: a new key of an old name finds nothing of the old one's. A `reviewer` sees and decides
    the reviews of all.
    """

    name: str
    tenant: str
    lease: Lease
    reviewer: bool = False

    @property
    def owner(self) -> str | None:
        """Whose reviews this caller may see; None: all."""
        return None if self.reviewer else self.tenant


@dataclass(frozen=True, slots=True)
class PublicPaths:
    """What GET and HEAD may see without a key: exact paths, and files below folders (`/static/`)."""

    exact: frozenset[str] = frozenset({"/health", "/ready"})
    folders: tuple[str, ...] = ()

    def has(self, scope: Scope) -> bool:
        """Whether this is one of them, spelt as it stands in the list."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        spelt = scope["path"].encode("utf-8", "surrogatepass")
        if (scope.get("raw_path") or spelt).split(b"?")[0] != spelt:  # something in it is escaped
            return False
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return path in self.exact or (path.startswith(self.folders) and _is_plain(path))


def _is_plain(path: str) -> bool:
    return "\\" not in path and not any(part in ("", ".", "..") for part in path.split("/")[1:])


def let_in(scope: Scope, caller: Caller) -> None:
    """Say who asks: for doors that stand in the guard's place."""
    scope[_CALLER] = caller


def caller_of(scope: Scope) -> Caller:
    """Who asks, for handlers behind the guard."""
    caller = scope[_CALLER]
    assert isinstance(caller, Caller)
    return caller


class Guard:
    """Middleware around a whole application. Without `keys` whoever asks is let in, without limits, as `anonymous`."""

    def __init__(self, app: App, keys: Keys | None, limiter: Limiter | None, public: PublicPaths | None = None) -> None:
        assert keys is None or limiter is not None, "limits of keys need books"
        self._app, self._keys, self._limiter = app, keys, limiter
        self._public = public or PublicPaths()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with 401 or 429."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        key = None if self._keys is None else _presented(self._keys, scope["headers"])
        if key is not None and self._limiter is not None:
            await self._limited(key, self._limiter, scope, receive, send)
        elif self._keys is None or self._public.has(scope):
            let_in(scope, Caller(ANONYMOUS, ANONYMOUS, Lease.free(ANONYMOUS), reviewer=self._keys is None))
            await self._app(scope, receive, send)
        else:
            record_of(scope).code, record_of(scope).error = "invalid_api_key", "no valid key"
            await _refuse(send, 401, [(b"www-authenticate", b"Bearer")], _no_key(scope["path"]))

    async def _limited(self, key: Key, limiter: Limiter, scope: Scope, receive: Receive, send: Send) -> None:
        name, limits = key.name, key.limits
        counted = scope["method"] not in _UNCOUNTED
        record = record_of(scope)
        record.key = name
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start" and lease is not None:
                message = {**message, "headers": [*message.get("headers", []), *_standing(lease)]}
            await send(message)

        lease = None
        try:
            lease = limiter.begin(name, limits if counted else Limits())
            let_in(scope, Caller(name, key.sha256, lease, key.reviews))
            await self._app(scope, receive, watched)
        except LimitReached as reached:
            if begun:
                raise
            record.code, record.error = reached.limit, str(reached)
            status, headers, body = limit_answer(scope["path"], reached, limiter.standing(name, limits))
            await _refuse(send, status, headers, body)
        except MachineError as error:
            if lease is not None:
                raise
            log.error("%s", error)  # without books there are no limits, and so nobody whom they bind
            record.error = "what the key uses cannot be written down"
            await _refuse(send, 503, [(b"retry-after", b"5")], _no_books(scope["path"]))
        finally:
            if lease is not None:
                lease.close()


def _standing(lease: Lease) -> Headers:
    try:
        return standing_headers(lease.standing())
    except MachineError as error:  # the answer is there all the same
        log.error("%s", error)
        return []


def _presented(keys: Keys, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
    """Whose key the headers hold: `Authorization: Bearer` or `x-api-key`; nobody's where they hold different ones."""
    found = set[bytes]()
    for name, value in headers:
        if name.lower() == b"x-api-key":
            found.add(value.strip())
        elif name.lower() == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            found.add(rest.strip() if scheme.lower() == b"bearer" else b"")
    return keys.find(found.pop().decode("latin-1")) if len(found) == 1 else None


def _no_key(path: str) -> bytes:
    message = "a valid API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`"
    return _body(path, message, "invalid_request_error", "invalid_api_key", "authentication_error")


def _no_books(path: str) -> bytes:
    message = "what keys may use cannot be kept count of now; the server's log says why"
    return _body(path, message, "server_error", "unavailable", "overloaded_error")


def limit_answer(path: str, reached: LimitReached, standing: Standing) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer to a request that met a limit."""
    kind = "tokens" if reached.limit.startswith("tokens") else "requests"
    code = "insufficient_quota" if reached.quota else "rate_limit_exceeded"
    body = _body(path, str(reached), "insufficient_quota" if reached.quota else kind, code, "rate_limit_error")
    headers = standing_headers(standing)
    if reached.wait_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(reached.wait_s))).encode()))
    return 429, headers, body


def limit_handler(request: Request, reached: Exception) -> Response:
    """For `add_exception_handler(LimitReached, ...)`, where an application's own handlers would make it a 500."""
    from starlette.responses import Response

    assert isinstance(reached, LimitReached)
    record_of(request.scope).code, record_of(request.scope).error = reached.limit, str(reached)
    status, headers, body = limit_answer(request.url.path, reached, Standing())  # the guard adds how the key stands
    return Response(body, status, {name.decode(): value.decode() for name, value in headers}, "application/json")


def _body(path: str, message: str, kind: str, code: str, anthropic: str) -> bytes:
    if path.startswith("/v1/messages"):
        return json.dumps({"type": "error", "error": {"type": anthropic, "message": message}}).encode()
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def standing_headers(standing: Standing) -> Headers:
    """`x-ratelimit-*` as OpenAI names them."""
    headers: Headers = []
    for name, left in (("requests", standing.requests), ("tokens", standing.tokens)):
        if left is not None:
            values = (str(left[0]), str(left[1]), _span(left[2]))
            for what, value in zip(("limit", "remaining", "reset"), values, strict=True):
                headers.append((f"x-ratelimit-{what}-{name}".encode(), value.encode()))
    return headers


def _span(seconds: float) -> str:
    """As OpenAI writes spans: 120ms, 7s, 1m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"


async def _refuse(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
