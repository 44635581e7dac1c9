"""What a server may do to who asks it: be busy, be wrong, be endless."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import pytest

from tenth.errors import MachineError, RequestError
from tenth.observe.http_client import Client, Refused


@contextmanager
def answering(*answers: bytes, slow: float = 0.0) -> Iterator[str]:
    """A server that says these bytes, one after the other of them to each request; the last one again and again."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.settimeout(10)

        def serve() -> None:
            number = 0
            while True:
                try:
                    one, _ = bound.accept()
                except OSError:
                    return
                with one:
                    one.settimeout(5)
                    asked = b""
                    while b"\r\n\r\n" not in asked:
                        asked += one.recv(4096)
                    said = answers[min(number, len(answers) - 1)]
                    number += 1
                    try:
                        for piece in (said[at : at + 40] for at in range(0, len(said), 40)) if slow else (said,):
                            one.sendall(piece)
                            time.sleep(slow)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        bound.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


def said(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


def test_a_busy_server_is_asked_again_as_it_says() -> None:
    soon = formatdate(time.time() + 20, usegmt=True)
    busy = (
        said(b"", "503 Busy"),
        said(b"", "429 Slow", retry_after="7"),
        said(b"", "503 Busy", retry_after=soon),
        said(b"", "503 Busy", retry_after="soon"),
    )
    waited = list[float]()
    with answering(*busy, said(b'{"a": 1}')) as address:
        assert Client(address, sleep=waited.append).json("/") == {"a": 1}
    assert waited[:2] == [1.0, 7.0]
    assert 15 < waited[2] <= 20
    assert waited[3] == 8.0


@pytest.mark.parametrize(("headers", "waits"), [({}, 5), ({"retry_after": "3600"}, 0), ({"retry_after": "0"}, 5)])
def test_it_is_not_asked_for_ever(headers: dict[str, str], waits: int) -> None:
    waited = list[float]()
    with (
        answering(said(b'{"error": {"message": "too\\nmuch"}}', "429 Slow", **headers)) as address,
        pytest.raises(Refused, match=r"/x: answers 429: too much$") as caught,
    ):
        Client(address, sleep=waited.append).ask("/x")
    assert (caught.value.status, len(waited)) == (429, waits)


def test_other_refusals_are_said_at_once() -> None:
    for answer, words in (
        (said(b"it\x1b[31m broke", "500 Oh"), "answers 500: it�.31m broke$"),
        (said(b"", "302 There", location="http://127.0.0.1:1/"), "answers 302$"),
        (said(b"[" * 4000, "400 No"), r"answers 400: \[\[\["),
    ):
        with answering(answer) as address, pytest.raises(Refused, match=words):
            Client(address, sleep=pytest.fail).ask("/")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"what is this\r\n\r\n", "cannot be reached: what is this"),
        (b"", "cannot be reached: Remote end closed connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "breaks off 7 bytes before its end"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "cannot be reached: IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "cannot be reached: got more than 100 headers"),
    ],
)
def test_broken_answers_are_one_line(answer: bytes, words: str) -> None:
    with answering(answer) as address, pytest.raises(MachineError, match=words):
        Client(address).json("/")


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe\x00", b"[" * 200_000, b"1" * 5000])
def test_no_json(body: bytes) -> None:
    with answering(said(body)) as address, pytest.raises(RequestError, match="/x: its answer is not JSON"):
        Client(address).json("/x")


def test_limits_of_size_and_time() -> None:
    with (
        answering(said(b"x" * 1001)) as address,
        pytest.raises(RequestError, match=r"its answer is larger than 1,000 bytes"),
    ):
        Client(address, largest=1000).ask("/")
    with (
        answering(said(b"x" * 4000), slow=0.02) as address,
        pytest.raises(MachineError, match=r"has not answered within 0\.5 s"),
    ):
        Client(address, seconds=0.5).ask("/")


@pytest.mark.parametrize(
    "address", ["http://", "http://[1", "http://a b", "http://x:y", "http://" + "a" * 70, "nothing"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises((RequestError, MachineError)) as caught:
        Client(address).ask("/")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_keys_that_no_header_can_hold_are_not_shown(key: Any) -> None:
    with pytest.raises(RequestError, match="the API key has characters that a header cannot have") as caught:
        Client("http://127.0.0.1:9", key)
    assert key not in str(caught.value)
