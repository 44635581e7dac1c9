"""The guard around small applications: who is let in, how refusals look, what is charged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from tenth.serve.guard import Guard, PublicPaths, caller_of, limit_handler
from tenth.serve.keys import Keys, new_key
from tenth.serve.limits import Limiter, LimitReached, Limits

SECRET = "correct horse battery"
BEARER = {"authorization": f"Bearer {SECRET}"}


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


async def everything(request: Request) -> Response:
    return JSONResponse({"caller": caller_of(request.scope).name, "path": request.url.path})


async def answer(request: Request) -> Response:
    """Reserves and uses what the body says; `fail` fails behind the reservation."""
    asked, lease = await request.json(), caller_of(request.scope).lease
    lease.reserve(asked["prompt"], asked["max_tokens"])
    if asked.get("fail"):
        raise RuntimeError("the engine has died")

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(asked["answer"]):
            lease.used(asked["prompt"], number + 1)
            yield b"x"

    return StreamingResponse(pieces())


ROUTES = [
    Route("/v1/chat/completions", answer, methods=["POST"]),
    Route("/v1/messages", answer, methods=["POST"]),
    Mount("/sub", routes=[Route("/health", everything)]),
    Route("/{rest:path}", everything, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(tmp_path: Path, clock: Clock) -> Iterator[Limiter]:
    made = Limiter(tmp_path / "limits.db", clock)
    yield made
    made.close()


def client(keys: Keys | None, limiter: Limiter, **options: Any) -> TestClient:
    inner = Starlette(routes=ROUTES, exception_handlers={LimitReached: limit_handler})
    public = PublicPaths(frozenset({"/health", "/ready", "/"}), ("/static/",))
    return TestClient(Guard(inner, keys, limiter, public), raise_server_exceptions=False, **options)


@pytest.fixture
def guarded(limiter: Limiter) -> TestClient:
    return client(Keys.of_secret(SECRET), limiter)


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/static/page.js", "/static/deep/er.css", "/health?x=1"])
def test_public_paths(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).json()["caller"] == "anonymous"
    assert guarded.head(path).status_code == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
        assert guarded.request(method, path).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models", "/v1/chat/completions", "/metrics", "/docs", "/openapi.json", "/nothing", "/sub/health"),
        *("//v1/models", "/v1//models", "/health/", "/Health", "/HEALTH", "/healthz", "/health%20"),
        *("/%68ealth", "/health%2f", "/health%00", "/%2e/health", "/health;x", "/static", "/static/"),
        *("/static/%2e%2e/v1/models", "/static/..%2fv1/models", "/static/%5c..%5cv1", "/static//x", "/static/a%2fb"),
        *("/ready%0d%0a", "/%e2%80%a8", "/static/\\x", "*"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
def test_all_else_needs_a_key(guarded: TestClient, path: str, method: str) -> None:
    assert guarded.request(method, path).status_code == 401
    assert guarded.request(method, path, headers=BEARER).status_code != 401


@pytest.mark.parametrize(
    "path", ["/v1/../health", "/static/../v1/models", "/static/./x", "/./health", "/static/..", "//health", ""]
)
@pytest.mark.parametrize("escaped", [False, True])
def test_dots_as_a_server_may_pass_them(limiter: Limiter, path: str, escaped: bool) -> None:
    """Clients take dots out of paths, attackers do not."""
    raw = path.replace(".", "%2e").encode() if escaped else path.encode()
    assert status(limiter, {"path": path, "raw_path": raw}) == 401
    assert status(limiter, {"path": path, "raw_path": None}) == 401


def test_a_path_below_a_prefix_of_the_proxy(limiter: Limiter) -> None:
    assert status(limiter, {"path": "/ours/health", "raw_path": b"/ours/health", "root_path": "/ours"}) == 200
    assert status(limiter, {"path": "/ours/v1", "raw_path": b"/ours/v1", "root_path": "/ours"}) == 401
    assert status(limiter, {"path": "/static/\udcff", "raw_path": b"/static/%ff"}) == 401
    assert status(limiter, {"path": "/health", "type": "websocket"}) == 401


def status(limiter: Limiter, scope: dict[str, Any]) -> int:
    """Of a GET without key, as a server would pass it on."""
    found = list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        found.append(message.get("status", 0))

    async def receive() -> Any:
        return {"type": "http.request"}

    guard = Guard(app, Keys.of_secret(SECRET), limiter, PublicPaths(folders=("/static/",)))
    asyncio.run(guard({"type": "http", "method": "GET", "headers": [], **scope}, receive, send))
    return found[0]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": SECRET},
        {"authorization": f"Basic {SECRET}"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {SECRET[:-1]}"},
        {"authorization": f"Bearer {SECRET}x"},
        {"x-api-key": ""},
        {"x-api-key": "wrong"},
        {"api-key": SECRET},
        {"authorization": "Bearer wrong", "x-api-key": SECRET},
        {"authorization": f"Bearer {SECRET}", "x-api-key": "wrong"},
        [("authorization", f"Bearer {SECRET}"), ("authorization", "Bearer other")],
    ],
)
def test_wrong_keys(guarded: TestClient, headers: Any) -> None:
    response = guarded.post("/v1/chat/completions", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert "Bearer KEY" in error["message"]
    assert SECRET not in response.text


@pytest.mark.parametrize(
    "headers",
    [BEARER, {"authorization": f"bearer  {SECRET} "}, {"x-api-key": SECRET}, {**BEARER, "x-api-key": SECRET}],
)
def test_right_keys(guarded: TestClient, headers: dict[str, str]) -> None:
    assert guarded.get("/v1/models", headers=headers).json()["caller"] == "default"


def test_anthropic_is_answered_in_its_form(guarded: TestClient) -> None:
    body = guarded.post("/v1/messages/count_tokens").json()
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")


def test_without_keys_all_are_let_in(limiter: Limiter) -> None:
    assert client(None, limiter).get("/v1/models").json()["caller"] == "anonymous"


@pytest.fixture
def limited(tmp_path: Path, limiter: Limiter) -> tuple[TestClient, dict[str, str]]:
    limits = Limits(requests_per_minute=4, tokens_per_minute=100, concurrent_requests=2, tokens_per_month=10_000)
    key = new_key(tmp_path / "keys.toml", "alice", limits)
    return client(Keys.from_file(tmp_path / "keys.toml"), limiter), {"x-api-key": key}


def rates(response: Any) -> dict[str, str]:
    return {name[12:]: value for name, value in response.headers.items() if name.startswith("x-ratelimit-")}


def test_headers_and_charges(limited: tuple[TestClient, dict[str, str]], clock: Clock) -> None:
    asking, headers = limited
    body = {"prompt": 10, "max_tokens": 50, "answer": 5}
    response = asking.post("/v1/chat/completions", json=body, headers=headers)
    assert response.text == "xxxxx"
    assert rates(response) == {
        "limit-requests": "4",
        "remaining-requests": "3",
        "reset-requests": "1m0s",
        "limit-tokens": "100",
        "remaining-tokens": "40",  # set aside as the answer begins
        "reset-tokens": "1m0s",
    }
    clock.now += 12.5
    assert "remaining-tokens" not in rates(asking.get("/v1/models", headers=headers))
    response = asking.post("/v1/chat/completions", json={**body, "max_tokens": 75}, headers=headers)
    assert rates(response)["remaining-tokens"] == "0"  # 15 of the first, 85 of this
    response = asking.post("/v1/chat/completions", json={**body, "max_tokens": 61}, headers=headers)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "48"  # 47.5 s until the first has left the window
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert response.json()["error"]["type"] == "tokens"
    assert rates(response)["remaining-tokens"] == "70"
    assert rates(response)["reset-tokens"] == "1m0s"
    assert asking.post("/v1/other", headers=headers).status_code == 200
    response = asking.post("/v1/messages", json=body, headers=headers)
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert (rates(response)["remaining-requests"], response.headers["retry-after"]) == ("0", "48")
    clock.now += 47.5
    assert asking.post("/v1/other", headers=headers).status_code == 200


def test_failures_charge_what_was_used(limited: tuple[TestClient, dict[str, str]], limiter: Limiter) -> None:
    asking, headers = limited
    body = {"prompt": 10, "max_tokens": 50, "answer": 5, "fail": True}
    assert asking.post("/v1/chat/completions", json=body, headers=headers).status_code == 500
    assert limiter._books.spent("alice", 1e9).month == 0
    assert limiter._books.spent("alice", 1e9).running == 0


def test_a_quota_is_no_rate(limited: tuple[TestClient, dict[str, str]]) -> None:
    asking, headers = limited
    body = {"prompt": 10_000, "max_tokens": 50, "answer": 5}
    response = asking.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "insufficient_quota"
    assert "retry-after" not in response.headers  # waiting does not help
    assert "ask for less" in response.json()["error"]["message"]


@pytest.mark.parametrize("how", ["disconnect", "cancel"])
def test_leaving_charges_what_was_used(limiter: Limiter, tmp_path: Path, how: str) -> None:
    """Two requests run, the client of one leaves in mid-stream: its tokens so far are charged, its place is free."""
    limits = Limits(tokens_per_minute=100, concurrent_requests=2)
    key = new_key(tmp_path / "keys.toml", "alice", limits)
    reached, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        lease = caller_of(scope).lease
        lease.reserve(10, 30)
        lease.used(10, 7)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        reached.set()
        if how == "disconnect":
            assert (await receive())["type"] == "http.disconnect"
            raise OSError("the client has left")
        await asyncio.sleep(60)

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async def run() -> None:
        guard = Guard(app, Keys.from_file(tmp_path / "keys.toml"), limiter)
        scope = {"type": "http", "method": "POST", "path": "/v1", "headers": [(b"x-api-key", key.encode())]}
        task = asyncio.ensure_future(guard(scope, receive, send))
        await reached.wait()
        assert limiter._books.spent("alice", 1e9).tokens == ((1e9, 40),)
        if how == "cancel":
            task.cancel()
        left.set()
        with pytest.raises(OSError if how == "disconnect" else asyncio.CancelledError):
            await task

    asyncio.run(run())
    spent = limiter._books.spent("alice", 1e9)
    assert (spent.tokens, spent.running) == (((1e9, 17),), 0)


def test_places_are_free_again(limited: tuple[TestClient, dict[str, str]], limiter: Limiter) -> None:
    asking, headers = limited
    limits = Limits(concurrent_requests=2)
    first, second = limiter.begin("alice", limits), limiter.begin("alice", limits)
    response = asking.post("/v1/x", headers=headers)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    first.close()
    assert asking.post("/v1/x", headers=headers).status_code == 200
    second.close()
