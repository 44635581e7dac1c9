"""A real server: clients that leave, heads that are too large, a stop under load, and a second one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tenth.serve.service import ServeOptions
from tests.serve.real import Server, get, server
from tests.serve.served import scripted

LONG = {"messages": [{"role": "user", "content": "go on"}], "temperature": 0, "enable_thinking": False}


def endless(text: str) -> str | None:
    return "word " * 6000


@pytest.fixture
def running() -> Iterator[Server]:
    with server(scripted(endless, context=8192), ServeOptions(drain_seconds=1.0), pages=1200) as found:
        yield found


def until(condition: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_what_it_held(running: Server, stream: bool) -> None:
    raw = json.dumps({**LONG, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}"
    )
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        for byte in f"{head}\r\n\r\n".encode():  # one at a time
            connection.sendall(bytes([byte]))
        connection.sendall(raw)
        until(lambda: running.service.jobs)
        (job,) = running.service.jobs
        until(lambda: job.usage().completion > 5)
    until(lambda: not running.service.jobs)
    until(lambda: not running.service.engine.engine.busy)
    assert job.usage().completion < 4000
    assert get(running, "/ready").status_code == 200


def test_heads_are_bounded(running: Server) -> None:
    for head in (b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000, b"GET /" + b"a" * 200_000):
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
    many = {f"x-{number}": "a" * 200 for number in range(400)}
    assert httpx.get(running.url + "/health", headers=many).status_code == 431
    body = {"prompt": "a" * 200_000}  # large bodies are no heads
    assert httpx.post(running.url + "/tokenize", json=body, timeout=20).status_code == 200


def test_what_runs_is_ended_with_a_clear_last_event(running: Server) -> None:
    lines = list[str]()
    with httpx.stream(
        "POST", running.url + "/v1/chat/completions", json={**LONG, "stream": True}, timeout=20
    ) as answer:
        for line in answer.iter_lines():
            if not lines:
                running.life.stop()
                until(lambda: running.service.phase == "draining")
                refused = httpx.post(running.url + "/v1/chat/completions", json=LONG)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
                assert get(running, "/ready").status_code == 503
            lines += [line] if line else []
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "stopping"
    assert lines[-1] == "data: [DONE]"
    running.thread.join(10)
    assert running.ended is True


def test_short_work_is_finished_and_then_it_ends(running: Server) -> None:
    body = {**LONG, "stream": True, "max_tokens": 40}
    with httpx.stream("POST", running.url + "/v1/chat/completions", json=body, timeout=20) as answer:
        running.life.stop()
        text = answer.read().decode()
    assert '"finish_reason":"length"' in text
    running.thread.join(10)
    assert running.ended is True


def test_told_twice_it_stops_at_once(running: Server) -> None:
    running.service.options  # noqa: B018 - drains for a second
    with httpx.stream(
        "POST", running.url + "/v1/chat/completions", json={**LONG, "stream": True}, timeout=20
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        start = time.monotonic()
        running.life.stop()
        time.sleep(0.15)
        running.life.stop()
        try:
            rest = [line for line in lines if line]
        except httpx.RemoteProtocolError:
            rest = []
    running.thread.join(10)
    assert time.monotonic() - start < 1.0
    assert running.ended is False
    assert len(rest) < 6000
