"""Requests that come slowly: heads have a time, bodies may come byte by byte."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from tenth.serve import protocol
from tests.serve.real import Server, server
from tests.serve.served import scripted
from tests.serve.test_chat import ask, echo

HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
BODY = json.dumps(ask("Grüße 🎉", temperature=0, enable_thinking=False), ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server(scripted(echo)) as found:
        yield found


@pytest.fixture
def connection(running: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as found:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield found


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds for a head, few of them."""
    monkeypatch.setattr(protocol, "SECONDS", 0.3)
    return 0.3


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def more(connection: socket.socket) -> bytes:
    found = connection.recv(65536)
    assert found, "the server has closed"
    return found


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += more(connection)
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(next(line.split()[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")))
    while len(body) < length:
        body += more(connection)
    return int(head.split()[1]), body


@pytest.mark.parametrize("part", [b"", b"GET", b"GET /health HTTP/1.1\r\nhost: a\r\nx-half: "])
def test_a_head_that_does_not_come(hurried: float, connection: socket.socket, part: bytes) -> None:
    start = time.monotonic()
    connection.sendall(part)
    found = rest(connection)
    assert hurried - 0.05 < time.monotonic() - start < 10
    if not part:  # nobody waits for an answer to nothing
        assert found == b""
        return
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert (error["message"], error["code"]) == ("the request did not come within 0.3 seconds", "timeout")


LARGE = b"x: " + b"a" * 70_000
REFUSED = {
    "late": (b"x-request-id: mine\r\nx-half: ", 408, "the request did not come", "mine"),
    "large": (LARGE, 431, "headers are larger", None),
    "no HTTP": (b"x-request-id: mine\r\na: b\r\nc: d\r\nwrong\r\n\r\n", 400, "no request of HTTP/1.1", "mine"),
}


@pytest.mark.parametrize("path", ["/v1/messages?beta=true", "/v1/chat/completions"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_ahead_of_the_routes_has_the_form_of_its_api_and_an_id(
    hurried: float, connection: socket.socket, path: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenth.serve.access")
    part, status, words, name = REFUSED[what]
    connection.sendall(f"POST {path} HTTP/1.1\r\nhost: a\r\n".encode() + part)
    head, _, body = rest(connection).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ") for line in lines[1:])
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert int(headers["content-length"]) == len(body)
    assert headers["x-request-id"] == (name or headers["x-request-id"])
    error = json.loads(body)
    anthropic = path.startswith("/v1/messages")
    assert error.get("type") == ("error" if anthropic else None)
    assert headers.get("request-id") == (headers["x-request-id"] if anthropic else None)
    assert words in error["error"]["message"]
    assert error["error"]["type"] == "invalid_request_error"
    fields = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert (fields["request_id"], fields["status"]) == (headers["x-request-id"], status)


def test_what_is_no_http_at_all(connection: socket.socket) -> None:
    connection.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
    head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_bytes_that_trickle_do_not_win_time(hurried: float, connection: socket.socket) -> None:
    start, sent = time.monotonic(), 0
    connection.settimeout(0.02)
    found = b""
    while time.monotonic() - start < 10 and not found:
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nx: "[sent : sent + 1] or b"a")
            sent += 1
            found = connection.recv(1000)
        except TimeoutError:
            continue
    assert found.startswith(b"HTTP/1.1 408 ")
    assert 5 < sent < 200


def test_the_time_is_that_of_a_head_alone(hurried: float, connection: socket.socket) -> None:
    connection.sendall(HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode())
    time.sleep(2 * hurried)  # the body is late
    connection.sendall(BODY)
    status, body = answer(connection)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "[Grüße 🎉]")
    time.sleep(2 * hurried)  # and so is the next request
    connection.sendall(HEALTH)
    assert answer(connection)[0] == 200
    connection.sendall(HEALTH[:20])
    assert rest(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_byte_by_byte(connection: socket.socket, chunked: bool) -> None:
    assert len(BODY) > len(BODY.decode())  # characters are cut
    length = b"transfer-encoding: chunked" if chunked else f"content-length: {len(BODY)}".encode()
    connection.sendall(HEAD + length + b"\r\n\r\n")
    for byte in BODY:
        connection.sendall(b"1\r\n%c\r\n" % byte if chunked else bytes([byte]))
    if chunked:
        connection.sendall(b"0\r\n\r\n")
    status, body = answer(connection)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "[Grüße 🎉]")


def test_a_hundred_thousand_chunks(connection: socket.socket) -> None:
    raw = BODY[:-1] + b" " * 100_000 + BODY[-1:]
    start = time.monotonic()
    connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in raw) + b"0\r\n\r\n")
    assert answer(connection)[0] == 200
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("wrong", [b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"fffffffffffffffff\r\n"])
def test_chunks_that_are_none(running: Server, connection: socket.socket, wrong: bytes) -> None:
    connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + wrong)
    assert rest(connection).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as other:
        other.sendall(HEALTH)
        assert answer(other)[0] == 200
